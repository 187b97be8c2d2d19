"""Run PyTorch's own samples of its modules, and write how many agree into the README; `--check` runs nothing.

It also writes the tables of docs/layers.md from `parity_tests/no_meaning.py`. `--check` compares the files with what
they are if every sample agrees that must: that is what `make test-all` proves.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent / "parity_tests"))

import jax

import no_meaning
import torch_samples

jax.config.update("jax_enable_x64", True)
ROOT = Path(__file__).parent.parent
README, LAYERS = ROOT / "README.md", ROOT / "docs/layers.md"
# module -> how many samples there are, how many must agree, and how many do
Counts = dict[str, tuple[int, int, int]]


def counts(run: bool) -> Counts:
    """The samples of each module; those that must agree are taken to do so unless they are run."""
    result = {}
    for module in torch_samples.INFOS:
        total = required = agreeing = 0
        for mode in torch_samples.MODES:
            samples = torch_samples.samples(module, mode)
            compared = [s for s in samples if not torch_samples.reasons(s)]
            total, required = total + len(samples), required + len(compared)
            agreeing += sum(not torch_samples.compared(s, mode) for s in compared) if run else len(compared)
        result[module] = total, required, agreeing
        if run:
            print(f"{module}: {agreeing} of {total} samples", flush=True)
    return result


def sentence(found: Counts) -> str:
    """N of 114 modules, M of 3,618 samples: a module counts if each of its samples agrees or has a reason."""
    modules = sum(required == agreeing for _, required, agreeing in found.values())
    total, agreeing = (sum(c[i] for c in found.values()) for i in (0, 2))
    return f"{modules} of {len(found)} modules, {agreeing:,} of {total:,} samples"


def table(entries: dict[str, str]) -> str:
    """A Markdown table of names and reasons."""
    if not entries:
        return "None.\n"
    rows = [f"| `{name}` | {reason} |" for name, reason in entries.items()]
    return "\n".join(["| name | why |", "|---|---|", *rows]) + "\n"


def marked(text: str, name: str, content: str) -> str:
    """A text with another content between the two markers of a name."""
    begin, end = f"<!-- {name}: begin (scripts/torch_nn.py) -->\n", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def updated(found: Counts) -> dict[Path, str]:
    """The files as they should be."""
    layers = LAYERS.read_text()
    samples = {" with ".join(k) if isinstance(k, tuple) else k: v for k, v in no_meaning.NO_MEANING.items()}
    tables = {
        "classes": no_meaning.CLASSES,
        "samples": samples,
        "functions": no_meaning.FUNCTIONS,
        "arguments": no_meaning.OTHER_ARGUMENTS,
    }
    for name, entries in tables.items():
        layers = marked(layers, name, table(entries))
    readme = marked(README.read_text(), "torch.nn", f"{sentence(found)}.\n")
    return {README: readme, LAYERS: layers}


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    found = counts(run=not check)
    print(sentence(found))
    for path, text in updated(found).items():
        if check and path.read_text() != text:
            sys.exit(f"{path.relative_to(ROOT)} is stale: run scripts/torch_nn.py")
        if not check:
            path.write_text(text)
