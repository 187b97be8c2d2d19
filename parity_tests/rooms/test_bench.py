"""Benchmarks do the same work in both frameworks, or say that they do not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxarch import bench, catalog, cli
from jaxarch.bench import attention, generation
from jaxarch.errors import JaxarchError, UsageError


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Benchmarks run in float32 whatever the tests' default is."""
    import jax

    with jax.enable_x64(False):
        yield


def test_both_take_the_same_step(tmp_path):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "mlp", "--no-compile", "--repeat", "1", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())
    assert found["name"] == "mlp"
    assert found["seconds"].keys() == {bench.OURS, "torch"}
    assert found["ratio"]["torch"] == pytest.approx(found["seconds"][bench.OURS] / found["seconds"]["torch"])


def test_other_work_is_refused():
    contest = bench.Contest("x", {bench.OURS: lambda: 1.0, "torch": lambda: 1.01})
    with pytest.raises(JaxarchError, match="losses differ"):
        bench.measure(contest)


def test_what_torch_does_not_compile_is_left_out(caplog):
    from torch._inductor.exc import InductorError

    def refuse():
        raise InductorError(AssertionError("no vector"), None)

    timing = bench.measure(bench.Contest("x", {bench.OURS: lambda: 1.0, "pyg compiled": refuse}), 1)
    assert timing.seconds.keys() == {bench.OURS}
    assert "pyg compiled is left out" in caplog.text
    with pytest.raises(InductorError):
        bench.measure(bench.Contest("x", {bench.OURS: refuse}), 1)


def test_text_is_counted_in_tokens(monkeypatch, tmp_path):
    sizes = {"vocab_size": 40, "d_model": 16, "n_layers": 1, "d_ff": 16}
    monkeypatch.setattr(generation, "SIZE", {**generation.SIZE, **sizes})
    monkeypatch.setattr(generation, "BATCHES", (2,))
    file = tmp_path / "bench.json"
    assert cli.main(["bench", "generation", "--repeat", "1", "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())
    for way, seconds in found["seconds"].items():
        assert found["tokens_per_second"][way] == pytest.approx(2 * generation.NEW / seconds)


def test_attention_is_timed_by_length(monkeypatch, tmp_path):
    monkeypatch.setattr(attention, "LENGTHS", (8, 16))
    monkeypatch.setattr(attention, "LAYERS", {k: attention.LAYERS[k] for k in ("full", "chunked")})
    found = [bench.measure(c, 1) for c in bench.contests("attention")]
    assert [f.name for f in found] == ["attention 8", "attention 16"]
    assert all(f.seconds.keys() == {"full", "chunked"} and not f.ratio for f in found)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, attention.WIDTH)), jnp.float32)
    full, chunked = (call(weights, x) for call, weights in map(attention.forward, ("full", "chunked")))
    assert np.allclose(full, chunked, atol=1e-6)


def test_unknown_names(capsys):
    with pytest.raises(UsageError, match="advanced_cnn"):
        list(bench.contests("advanced_cn"))
    assert cli.main(["bench", "mlp", "--repeat", "0", "--no-compile"]) == 2
    assert "repeat" in capsys.readouterr().err


def test_names_of_variants():
    assert catalog.find("resnet50") == ("resnet", "resnet50")
    assert catalog.find("efficientnet_b0") == ("efficientnet", "b0")
    assert catalog.find("mlp") == ("mlp", None)
    with pytest.raises(UsageError, match="did you mean 'efficientnet_b0'"):
        catalog.find("efficientnet_b00")
