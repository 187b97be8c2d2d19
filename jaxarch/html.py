"""Self-contained HTML from the templates, and pictures to put inside."""

import io
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A template of jaxarch/templates as HTML; text is escaped, unknown names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(values)


def curves(lines: dict[str, tuple[list[float], list[float]]], *, xlabel: str, ylabel: str) -> str:
    """A line chart as an SVG element; `lines` maps a label to its x and y values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for style, (label, (x, y)) in zip(("-", "--", ":", "-."), lines.items(), strict=False):
        axes.plot(x, y, style, label=label, linewidth=1.5)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
