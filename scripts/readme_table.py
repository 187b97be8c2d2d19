"""Write the README's table of architectures from the pages; `--check` only says whether it is current."""

import sys
from pathlib import Path

import torch

from jaxarch import catalog

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- table: begin (scripts/readme_table.py) -->\n", "<!-- table: end -->"


def table() -> str:
    """A Markdown row for each architecture: the parameters of its largest variant, and its paper."""
    lines = ["| name | class | family | variants | parameters | paper |", "|---|---|---|---|---|---|"]
    for name in catalog.list_models():
        page = catalog.page(name)
        largest = max(parameters(name, variant) for variant in page.variants)
        variants = ", ".join(page.variants)
        row = (f"`{name}`", f"`{page.cls}`", page.family, variants, f"up to {largest:,}", page.paper)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def parameters(name: str, variant: str) -> int:
    """Number of parameters, counted on the meta device, where nothing is allocated or initialised."""
    with torch.device("meta"):
        model = catalog.create_model(name, variant, package="torchref")
    return sum(p.numel() for p in model.parameters())


def updated(text: str) -> str:
    """The README with a fresh table."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    current = README.read_text()
    fresh = updated(current)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if fresh == current else "README.md: the table is stale; run scripts/readme_table.py")
    README.write_text(fresh)
