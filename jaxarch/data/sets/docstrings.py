"""The standard library's docstrings, by the part of the library that they document."""

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.convert.fetch import folder_of
from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch, Source
from jaxarch.errors import DataError, UsageError, require, unknown

# Top-level packages and modules; what is in none of them is left out.
PARTS: Mapping[str, str] = {
    "concurrency": "asyncio concurrent multiprocessing threading subprocess queue sched selectors asyncore signal",
    "internet": (
        "http urllib email smtplib smtpd ftplib imaplib poplib nntplib telnetlib xmlrpc socketserver socket ssl"
        " mailbox html cgi wsgiref webbrowser ipaddress nturl2path asynchat"
    ),
    "windows": "tkinter idlelib turtle turtledemo curses",
    "development": (
        "unittest doctest pdb bdb lib2to3 distutils ensurepip venv pydoc trace inspect ast dis cProfile pstats"
        " profile timeit traceback tracemalloc importlib pkgutil"
    ),
    "numbers and data": (
        "decimal _pydecimal fractions statistics random numbers collections heapq bisect datetime calendar"
        " zoneinfo copy enum dataclasses typing types _collections_abc colorsys"
    ),
    "files and formats": (
        "pathlib os shutil tempfile glob fnmatch zipfile tarfile gzip bz2 lzma csv json configparser plistlib xml"
        " pickle pickletools shelve dbm sqlite3 io codecs logging tomllib wave aifc sunau encodings base64 quopri"
    ),
}
FORMS = ("words", "characters", "sentences", "tokens")
SYMBOLS = " \n" + "abcdefghijklmnopqrstuvwxyz0123456789" + "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"
PAD, UNKNOWN = 0, 1
_words = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9]")
_sentences = re.compile(r"(?<=[.!?:])\s+|\n\s*\n")


def load(
    *,
    arguments: Mapping[str, Any],
    form: str = "words",
    length: int = 64,
    sentences: int = 6,
    minimum: int = 40,
    tokenizer: str = "",
) -> ArraySource:
    """Docstrings of at least `minimum` characters, labelled by one of PARTS; every fifth file is for testing.

    `form` "words": ids (N, length), lengths (N,). "characters": x (N, length, 70), one-hot. "sentences": ids
    (N, sentences, length). Words are those of the training files in the order of their frequency, as many as
    the model's vocab_size; 0 is padding, 1 any other word. "tokens": input_ids and attention_mask (N, length)
    by the `tokenizer` of a Hugging Face folder, `hf:FOLDER` or `package:NAME/FOLDER`. A text that stands in
    a training file is not tested on. `extra` holds the parts' names, the vocabulary and the texts.

    Raises:
        UsageError: unknown form; "tokens" without a tokenizer, or the reverse.
        DataError: the standard library's source is not installed, the folder holds no tokenizer of the model's.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if (form == "tokens") != bool(tokenizer):
        raise UsageError("form tokens takes a tokenizer, such as hf:FOLDER, and no other form does")
    train, test = texts(minimum)
    words: list[str] = []
    if form in ("words", "sentences"):
        counts = Counter(word for text, _ in train for word in split(text))
        words = ["", "?", *(word for word, _ in counts.most_common(arguments["vocab_size"] - 2))]
    word_ids = {word: i for i, word in enumerate(words)}
    parts = []
    for pairs in (train, test):
        if form == "words":
            batch = as_words([text for text, _ in pairs], word_ids, length)
        elif form == "tokens":
            batch = _as_tokens(pairs, folder_of(tokenizer), arguments["vocab_size"], length)
        elif form == "sentences":
            batch = _as_sentences(pairs, word_ids, sentences, length)
        else:
            batch = _as_characters(pairs, length)
        parts.append({**batch, "label": np.array([label for _, label in pairs], np.int32)})
    return ArraySource(
        train=parts[0],
        test=parts[1],
        classes=len(PARTS),
        unit="docstrings",
        extra={"parts": tuple(PARTS), "words": words, "train": train, "test": test},
    )


def texts(minimum: int = 40) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(docstring, number of its part) pairs for training and for testing, none in both.

    Raises:
        DataError: the standard library's source is not installed.
    """
    train, test = pages(minimum)
    return [(text, part) for text, part, _ in train], [(text, part) for text, part, _ in test]


def pages(minimum: int = 40) -> tuple[list[tuple[str, int, bool]], list[tuple[str, int, bool]]]:
    """As `texts`, each with whether it documents a function or method rather than a class or module."""
    folder = Path(sysconfig.get_path("stdlib"))
    by_split: tuple[dict[str, tuple[int, bool]], dict[str, tuple[int, bool]]] = ({}, {})
    for label, names in enumerate(PARTS.values()):
        files = [
            f
            for name in names.split()
            for f in (folder / f"{name}.py", *sorted((folder / name).rglob("*.py")))
        ]
        files = [f for f in files if f.is_file() and not {"test", "tests", "idle_test"} & set(f.parts)]
        if len(files) < 5:
            raise DataError(
                f"the standard library's source is not at {folder}: install Python's full package"
            )
        for i, file in enumerate(files):
            for text, called in _docstrings(file.read_text(encoding="utf-8", errors="replace")):
                if len(text) >= minimum:
                    by_split[i % 5 == 4].setdefault(text, (label, called))
    train, test = by_split
    return [(k, *v) for k, v in train.items()], [(k, *v) for k, v in test.items() if k not in train]


def split(text: str) -> list[str]:
    """A text as lower-case words, numbers and punctuation marks."""
    return _words.findall(text.lower())


def in_sentences(text: str) -> list[list[str]]:
    """A text as sentences of words; an empty line also ends a sentence."""
    return [words for part in _sentences.split(text) if (words := split(part))]


def baselines(source: Source) -> dict[str, float]:
    """Accuracies on the test texts: the largest class, and logistic regression on counts of words."""
    require("sklearn", "recipes", "docstrings.baselines")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    (train, train_labels), (test, test_labels) = (
        zip(*source.extra[k], strict=True) for k in ("train", "test")
    )
    majority = Counter(train_labels).most_common(1)[0][0]
    counter = CountVectorizer(analyzer=split, max_features=5000)
    x = np.log1p(counter.fit_transform(train))
    model = LogisticRegression(C=1.0, max_iter=300).fit(x, train_labels)
    accuracy = model.score(np.log1p(counter.transform(test)), test_labels)
    return {"majority": float(np.mean(np.array(test_labels) == majority)), "bag of words": float(accuracy)}


def _docstrings(source: str) -> Iterator[tuple[str, bool]]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # lib2to3 and idlelib carry files of other Pythons
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text, isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def as_words(texts: Sequence[str], word_ids: Mapping[str, int], length: int) -> Batch:
    """ids (N, length) and lengths (N,) of texts; a text without a word has one of padding."""
    ids, lengths = np.full((len(texts), length), PAD, np.int32), np.ones(len(texts), np.int32)
    for row, text in enumerate(texts):
        known = [word_ids.get(word, UNKNOWN) for word in split(text)[:length]]
        ids[row, : len(known)] = known
        lengths[row] = max(len(known), 1)
    return {"ids": ids, "lengths": lengths}


def _as_sentences(
    pairs: list[tuple[str, int]], word_ids: Mapping[str, int], sentences: int, length: int
) -> Batch:
    ids = np.full((len(pairs), sentences, length), PAD, np.int32)
    for row, (text, _) in enumerate(pairs):
        for i, words in enumerate(in_sentences(text)[:sentences]):
            known = [word_ids.get(word, UNKNOWN) for word in words[:length]]
            ids[row, i, : len(known)] = known
    return {"ids": ids}


def _as_tokens(pairs: list[tuple[str, int]], folder: Path, vocab: int, length: int) -> Batch:
    tokenizers = require("tokenizers", "recipes", "data docstrings in the form tokens")
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{file}: no tokenizer; give the folder of a Hugging Face model")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    if tokenizer.get_vocab_size() > vocab:
        raise DataError(f"{file} has {tokenizer.get_vocab_size()} tokens, the model {vocab}")
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch([text for text, _ in pairs])
    ids, mask = (np.array([getattr(e, k) for e in encodings], np.int32) for k in ("ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask}


def _as_characters(pairs: list[tuple[str, int]], length: int) -> Batch:
    index = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    # float16 keeps the one-hot rows small; training casts them to the model's dtype.
    x = np.zeros((len(pairs), length, len(SYMBOLS) + 1), np.float16)
    for row, (text, _) in enumerate(pairs):
        codes = [index.get(c, len(SYMBOLS)) for c in text.lower()[:length]]
        x[row, np.arange(len(codes)), codes] = 1
    return {"x": x}
