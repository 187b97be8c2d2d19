"""Lines of Python's standard library: code, comment or docstring."""

import ast
import io
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch
from jaxarch.errors import DataError

KINDS = ("code", "comment", "docstring")
LINE, SYMBOLS = 80, 96


def load(*, per_class: int = 6000) -> ArraySource:
    """Lines of the standard library as one-hot characters (T=80, 96 symbols) with their lengths.

    The label says whether a line is code, a comment or inside a docstring; markers that give it away (the
    `#`, the quotes) are stripped. A file is either for training or for testing; classes are equally many.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in folder.glob("*.py") if p.stat().st_size < 200_000)
    if len(files) < 50:
        raise DataError(f"the standard library's source is not at {folder}: install Python's full package")
    rng = np.random.default_rng(0)
    parts = []
    for chosen, count in (
        (files[::5], per_class // 5),
        ([f for i, f in enumerate(files) if i % 5], per_class),
    ):
        by_kind: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for file in chosen:
            for kind, line in _lines(file.read_text(encoding="utf-8", errors="replace")):
                by_kind[kind].append(line)
        pairs = []
        for label, kind in enumerate(KINDS):
            lines = sorted(set(by_kind[kind]))
            pairs += [(lines[i], label) for i in rng.permutation(len(lines))[:count]]
        parts.append(_encoded(pairs))
    return ArraySource(
        train=parts[1], test=parts[0], classes=len(KINDS), unit="lines", extra={"kinds": KINDS}
    )


def _lines(source: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of the lines of a file that are of one kind alone."""
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return
    documented: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            first = node.body[0]
            documented.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    comments = {t.start[0] for t in tokens if t.type == tokenize.COMMENT and not t.line[: t.start[1]].strip()}
    strings = {i for t in tokens if t.type == tokenize.STRING for i in range(t.start[0], t.end[0] + 1)}
    for number, line in enumerate(source.splitlines(), 1):
        if number in documented:
            kind, text = "docstring", line.strip().strip("\"'")
        elif number in comments:
            kind, text = "comment", line.strip().lstrip("#!")
        elif number in strings and line.count('"') + line.count("'") == 0:
            continue  # inside a string that documents nothing
        else:
            kind, text = "code", line.split("#")[0]
        text = text.strip()
        if len(text) >= 8:
            yield kind, text[:LINE]


def _encoded(pairs: list[tuple[str, int]]) -> Batch:
    x = np.zeros((len(pairs), LINE, SYMBOLS), np.float32)
    lengths = np.array([len(text) for text, _ in pairs], np.int32)
    for row, (text, _) in enumerate(pairs):
        codes = np.array([ord(c) - 32 for c in text])
        x[row, np.arange(len(text)), np.where((codes < 0) | (codes > 94), 95, codes)] = 1
    return {"x": x, "lengths": lengths, "label": np.array([label for _, label in pairs], np.int32)}
