"""Every module of torch.nn against PyTorch's own sample inputs, every option, in eval and train mode."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import config

import torch_samples
from jaxarch import nn
from jaxarch.errors import JaxarchError
from no_meaning import NO_MEANING

# torch says at every build of an encoder that its inference fast path will not serve it.
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")

SCRIPT = Path(__file__).parents[2] / "scripts/torch_nn.py"
MODULES = list(torch_samples.INFOS)
REFUSED = [name for name in MODULES if torch_samples.error_samples(name)]


def failures(samples: list[torch_samples.Sample], mode: str) -> list[str]:
    """One line for each sample that does not agree."""
    results = ((s, torch_samples.compared(s, mode)) for s in samples if not torch_samples.reasons(s))
    return [f"{sample} -> {result}" for sample, result in results if result]


def report(lines: list[str]) -> str:
    """The first lines, and how many there are."""
    return "\n".join((f"{len(lines)} samples differ", *lines[:8]))


def test_the_counts_in_the_documents_are_current():
    """Those of scripts/torch_nn.py, if all agree that must; which `test_every_sample` shows."""
    spec = importlib.util.spec_from_file_location("torch_nn", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    counts = script.counts(run=False)
    assert script.sentence(counts).startswith(f"{len(MODULES)} of 114 modules")
    assert sum(total for total, *_ in counts.values()) == 3618
    assert len(REFUSED) > 15
    for path, text in script.updated(counts).items():
        assert path.read_text() == text, f"{path.name} is stale: run scripts/torch_nn.py"


@pytest.mark.parametrize("module", MODULES)
def test_slice(module):
    """The first sample in train mode, and the last one in eval mode."""
    lines = failures(torch_samples.samples(module, "train")[:1], "train")
    lines += failures(torch_samples.samples(module, "eval")[-1:], "eval")
    assert not lines, report(lines)


@pytest.mark.slow
@pytest.mark.parametrize("mode", torch_samples.MODES)
@pytest.mark.parametrize("module", MODULES)
def test_every_sample(module, mode):
    lines = failures(torch_samples.samples(module, mode), mode)
    assert not lines, report(lines)


@pytest.mark.parametrize("module", REFUSED)
def test_error_inputs(module, monkeypatch):
    """What torch refuses, we refuse by ourselves, without the suite's checks of annotations."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    for sample, error in torch_samples.error_samples(module):
        with pytest.raises(JaxarchError) as raised:
            torch_samples.call(sample)
        assert len(str(raised.value).splitlines()) == 1, (str(sample), error)


def test_no_entry_is_stale():
    """Each entry of the table is met by samples, and the first of them cannot hold indeed."""
    for key in NO_MEANING:
        module, option = key if isinstance(key, tuple) else (key, None)
        met = [s for s in torch_samples.samples(module, "train") if option in (None, *s.options())]
        assert met, f"{key}: no sample has it"
        assert torch_samples.compared(met[0], "train"), f"{key} holds"


def test_a_planted_fault_is_found():
    """An error of 1e-9 in any part, and a part that is missing."""
    (sample, *_) = torch_samples.samples("BatchNorm1d", "train")
    expected, _ = torch_samples.in_torch(sample, torch_samples.build_torch(sample, "train"))
    assert not torch_samples.difference(expected, expected)
    for part in expected._fields:
        tensors = {k: v + 1e-9 * np.abs(v).max() for k, v in getattr(expected, part).items()}
        assert torch_samples.difference(expected, expected._replace(**{part: tensors})), part
        assert torch_samples.difference(expected, expected._replace(**{part: {}})), part


def test_an_ignored_option_is_found(monkeypatch):
    conv = nn.Conv2d
    samples = [s for s in torch_samples.samples("Conv2d", "train") if "padding='same'" in s.options()]
    assert samples
    assert not failures(samples, "train")
    monkeypatch.setattr(nn, "Conv2d", lambda *args, **kwargs: conv(*args, **{**kwargs, "padding": 1}))
    assert failures(samples, "train")
