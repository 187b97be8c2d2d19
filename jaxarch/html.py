"""Self-contained HTML from the templates, and figures to embed."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.errors import DataError, require

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """A template of jaxarch/templates as HTML; text is escaped, unknown names are errors."""
    jinja2 = require("jinja2", "viz", "an HTML page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(values)


def curves(lines: dict[str, tuple[list[float], list[float]]], *, xlabel: str, ylabel: str) -> str:
    """A line chart as an SVG element; `lines` maps a label to its x and y values."""
    figure = require("matplotlib.figure", "viz", "a chart").Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for style, (label, (x, y)) in zip(itertools.cycle(("-", "--", ":", "-.")), lines.items(), strict=False):
        axes.plot(x, y, style, label=label, linewidth=1.5)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def attention(
    words: Sequence[Sequence[str]], weights: tuple[Any, Any], *, title: str = "Attention", note: str = ""
) -> str:
    """The words of a document's sentences, shaded by their attention, as a page of HTML.

    `weights` are those of the words (S, W) and of the sentences (S,), as HierarchicalAttentionNetwork gives
    them for one document; entries past the words of a sentence and past the sentences are padding. The word
    with the largest weight of its sentence is the darkest; hovering shows a word's share of its sentence.

    Raises:
        DataError: weights of another shape, fewer than the words, or not within [0, 1].
    """
    by_word, by_sentence = (np.asarray(w, np.float64) for w in weights)
    if by_word.ndim != 2 or by_sentence.shape != by_word.shape[:1]:
        raise DataError(
            f"weights of shapes {by_word.shape} and {by_sentence.shape} are not those of one document:"
            " give (S, W) and (S,)"
        )
    longest = max((len(s) for s in words), default=0)
    if len(words) > by_word.shape[0] or longest > by_word.shape[1]:
        raise DataError(
            f"{len(words)} sentences of up to {longest} words are more than the weights {by_word.shape}:"
            " truncate the text as the model's data was"
        )
    if not all(((w >= 0) & (w <= 1 + 1e-6)).all() for w in (by_word, by_sentence)):
        raise DataError("attention weights must be in [0, 1]: give the model's weights, not its scores")
    sentences = []
    for row, share, sentence in zip(by_word, by_sentence, words, strict=False):
        largest = row.max(initial=0) or 1.0
        tokens = [{"text": w, "weight": x, "shade": x / largest} for w, x in zip(sentence, row, strict=False)]
        sentences.append({"words": tokens, "weight": share})
    return render("attention.html", title=title, note=note, sentences=sentences)
