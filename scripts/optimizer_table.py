"""Write the tables of docs/optimizers.md from signatures and samples; `--check` only says whether they are current."""

import inspect
import sys
import warnings
from pathlib import Path

import torch
from torch.optim import lr_scheduler as torch_schedulers

from jaxarch import optim
from jaxarch.optim import lr_scheduler, swa_utils
from jaxarch.optim.named import WITHOUT_EFFECT

PAGE = Path(__file__).parent.parent / "docs" / "optimizers.md"
BEGIN, END = "<!-- table: begin (scripts/optimizer_table.py) -->\n", "<!-- table: end -->"


def tables() -> str:
    """Rows of optimizers and of schedules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    samples = {i.name: len(i.optim_inputs_func(device="cpu", dtype=torch.float64)) for i in optim_db}
    lines = [
        f"{len(samples)} of {len(samples)} optimizers of torch.optim, {sum(samples.values())} of "
        f"{sum(samples.values())} of PyTorch's samples on the CPU; one of them, a tensor `lr` of Muon, in float64.",
        "",
        "| optimizer | arguments and defaults | in recipes | samples |",
        "|---|---|---|---|",
    ]
    for name in sorted([*samples, "Lion"], key=str.lower):
        count = samples.get(name, "torchref's")
        lines.append(f"| `{name}` | {arguments(getattr(optim, name))} | `{name.lower()}` | {count} |")
    lines += ["", "| schedule | arguments and defaults |", "|---|---|"]
    names = [n for n, v in vars(torch_schedulers).items() if is_scheduler(v)]
    for name in names:
        lines.append(f"| `{name}` | {arguments(getattr(lr_scheduler, name))} |")
    lines.append(f"| `SWALR` | {arguments(swa_utils.SWALR)} |")
    return "\n".join(lines) + "\n"


def is_scheduler(value: object) -> bool:
    """Whether a name of torch's module is a scheduler that is used as it is."""
    base = torch_schedulers.LRScheduler
    return (
        isinstance(value, type)
        and issubclass(value, base)
        and value.__name__ not in ("LRScheduler", "_LRScheduler")
    )


def arguments(function: object) -> str:
    """The arguments with their defaults, but those that choose among torch's implementations."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    shown = [p for p in parameters if p.name not in WITHOUT_EFFECT]
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={short(p.default)}" for p in shown)


def short(value: object) -> str:
    """A default as it is written."""
    return f"{value:.3g}" if isinstance(value, float) and value == 1 / 3 else repr(value)


def updated(text: str) -> str:
    """The page with fresh tables."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    current = PAGE.read_text()
    fresh = updated(current)
    if "--check" in sys.argv[1:]:
        sys.exit(
            0
            if fresh == current
            else "docs/optimizers.md: the tables are stale; run scripts/optimizer_table.py"
        )
    PAGE.write_text(fresh)
