"""Data that every installation carries, in batches that follow from the seed and the step alone."""

import ast
import functools
import io
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxarch.errors import DataError, UsageError, unknown

Batch = dict[str, np.ndarray]


class Source(NamedTuple):
    """Training and evaluation examples as arrays with one row per example.

    `items` is what one example counts in throughput (tokens of a window, or 1).
    """

    train: Batch
    test: Batch
    classes: int
    items: int
    unit: str
    extra: Mapping[str, Any]

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The batch of a step: every example once an epoch, in an order drawn from the seed and the epoch."""
        count = len(next(iter(self.train.values())))
        if size > count:
            raise UsageError(f"batch_size {size} exceeds the {count} training examples")
        each = count // size
        order = np.random.default_rng((seed, step // each)).permutation(count)
        rows = order[step % each * size : (step % each + 1) * size]
        return {k: v[rows] for k, v in self.train.items()}

    def evaluation(self, size: int) -> Iterator[Batch]:
        """Test batches of one size; the rows that fill up the last one have the label -100."""
        count = len(next(iter(self.test.values())))
        for start in range(0, count, size):
            rows = np.arange(start, start + size)
            batch = {k: v[rows % count] for k, v in self.test.items()}
            for key in ("label", "labels"):
                if key in batch:
                    batch[key][rows >= count] = -100
            yield batch


def load(
    name: str, *, out: Path, arguments: Mapping[str, Any], options: Mapping[str, Any], seed: int
) -> Source:
    """The data of a recipe. `out` is where a tokenizer is kept; `arguments` are the model's.

    Raises:
        UsageError: unknown data or option.
        DataError: this Python does not carry the data.
    """
    if name not in SOURCES:
        raise unknown("data", name, SOURCES)
    make, known = SOURCES[name]
    for option in options:
        if option not in known:
            raise unknown(f"option of data {name}", option, known)
    return make(out=out, arguments=arguments, seed=seed, **options)


def digits(*, flatten: bool = False, upscale: int = 1, seed: int = 0, **_: Any) -> Source:
    """scikit-learn's 1,797 digits of 8 by 8, scaled to [0, 1]; a fifth of each class is for testing.

    `upscale` repeats each pixel that many times along both axes, for nets that halve the picture often.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    if not flatten:
        x = x.reshape(-1, 8, 8, 1).repeat(upscale, 1).repeat(upscale, 2)
    parts = train_test_split(x, labels.astype(np.int32), test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = parts
    return Source({"x": train_x, "label": train_y}, {"x": test_x, "label": test_y}, 10, 1, "images", {})


KINDS = ("code", "comment", "docstring")
LINE, SYMBOLS = 80, 96


def stdlib_lines(*, per_class: int = 6000, seed: int = 0, **_: Any) -> Source:
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
            keep = rng.permutation(len(lines))[:count]
            pairs += [(lines[i], label) for i in keep]
        parts.append(_encoded(pairs))
    return Source(parts[1], parts[0], len(KINDS), 1, "lines", {"kinds": KINDS})


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


def pydoc_topics(*, out: Path, arguments: Mapping[str, Any], seed: int = 0, **_: Any) -> Source:
    """The text of pydoc_data.topics as windows of byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics, with the model's vocabulary, and kept in `out`.
    `extra` holds the perplexities of a unigram and of an interpolated bigram model on the test tokens.
    """
    from jaxarch.train import text

    train, test = text.topics()
    tokenizer = text.train_tokenizer(train, arguments["vocab_size"], out)
    ids = [text.encode(tokenizer, part) for part in (train, test)]
    length = arguments["max_seq_len"]
    # Training windows overlap by half, so that a token is seen in more than one context.
    windows = [text.windows(ids[0], length, length // 2), text.windows(ids[1], length, length)]
    batches = [{"input_ids": w, "labels": w} for w in windows]
    baselines = text.baselines(ids[0], ids[1], arguments["vocab_size"], length)
    return Source(batches[0], batches[1], arguments["vocab_size"], length, "tokens", {"baselines": baselines})


SOURCES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "digits": (functools.partial(digits), ("flatten", "upscale")),
    "stdlib_lines": (functools.partial(stdlib_lines), ("per_class",)),
    "pydoc_topics": (functools.partial(pydoc_topics), ()),
}
