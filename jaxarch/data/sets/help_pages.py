"""The standard library's docstrings as pages: what they are about, what they document, how they read."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.sets import docstrings
from jaxarch.data.source import Batch
from jaxarch.errors import require

HEADS = ("part", "function", "ease")
_vowels = re.compile(r"[aeiouy]+")
_words = re.compile(r"[a-z]+")


def load(*, arguments: Mapping[str, Any], minimum: int = 80, hidden: float = 0.2) -> ArraySource:
    """Words (N, max_length) of docstrings of at least `minimum` characters, and three facts about each page.

    target_part: which part of the library it documents; target_function: whether it documents a function or
    method rather than a class or module; target_ease: the reading ease of the whole page, in the training
    pages' standard deviations. Words, files and tests are those of `docstrings`.
    In training a share `hidden` of the words reads as unknown, others in each batch. `extra` holds the parts, the
    words, mean and deviation of the reading ease, and the texts.
    """
    train, test = docstrings.pages(minimum)
    length = arguments["max_length"]
    counts = Counter(word for text, *_ in train for word in docstrings.split(text))
    words = ["", "?", *(word for word, _ in counts.most_common(arguments["vocab_size"] - 2))]
    numbers = {word: i for i, word in enumerate(words)}
    eases = [np.array([reading_ease(text) for text, *_ in pairs]) for pairs in (train, test)]
    mean, deviation = float(eases[0].mean()), float(eases[0].std())
    parts: list[Batch] = []
    for pairs, ease in zip((train, test), eases, strict=True):
        tokens = docstrings.as_words([text for text, *_ in pairs], numbers, length)
        steps = np.arange(length)[None]
        parts.append(
            {
                "input_ids": tokens["ids"],
                "attention_mask": (steps < tokens["lengths"][:, None]).astype(np.int32),
                "target_part": np.array([part for _, part, _ in pairs], np.int32),
                "target_function": np.array([called for *_, called in pairs], np.float32),
                "target_ease": ((ease - mean) / deviation).astype(np.float32),
            }
        )

    def hide(batch: Batch, rng: np.random.Generator) -> Batch:
        ids = batch["input_ids"]
        masked = (rng.random(ids.shape) < hidden) & (ids != docstrings.PAD)
        return {**batch, "input_ids": np.where(masked, docstrings.UNKNOWN, ids)}

    return ArraySource(
        train=parts[0],
        test=parts[1],
        classes=len(docstrings.PARTS),
        unit="pages",
        augment=hide,
        extra={
            "parts": tuple(docstrings.PARTS),
            "words": words,
            "ease": (mean, deviation),
            "train": train,
            "test": test,
        },
    )


def reading_ease(text: str) -> float:
    """Flesch's reading ease (1948), between 0 and 100; syllables are counted as groups of vowels."""
    words = _words.findall(text.lower())
    if not words:
        return 0.0
    syllables = sum(max(len(_vowels.findall(word)), 1) for word in words)
    sentences = max(len(docstrings.in_sentences(text)), 1)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
    return float(np.clip(ease, 0, 100))


def baselines(source: ArraySource) -> dict[str, float]:
    """On the test pages: the most frequent answer, and linear models on counts of the words that are shown."""
    require("sklearn", "recipes", "help_pages.baselines")
    from sklearn.linear_model import LogisticRegression, Ridge

    def bags(batch: Batch) -> np.ndarray:
        x = np.zeros((len(batch["input_ids"]), len(source.extra["words"])), np.float32)
        rows = np.repeat(np.arange(len(x)), batch["input_ids"].shape[1])
        np.add.at(x, (rows, batch["input_ids"].ravel()), batch["attention_mask"].ravel())
        return np.log1p(x)

    x, y = bags(source.train), bags(source.test)
    scores = {}
    for head in HEADS[:2]:
        train, test = source.train[f"target_{head}"], source.test[f"target_{head}"]
        values, counts = np.unique(train, return_counts=True)
        scores[f"most frequent {head}"] = float((test == values[counts.argmax()]).mean())
        scores[f"linear {head}"] = float(LogisticRegression(max_iter=300).fit(x, train).score(y, test))
    ridge = Ridge(30.0).fit(x, source.train["target_ease"])
    scores["linear ease"] = float(ridge.score(y, source.test["target_ease"]))
    return scores
