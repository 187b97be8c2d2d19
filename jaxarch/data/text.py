"""Text as windows of token ids, with its tokenizer and n-gram baselines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxarch.errors import DataError, require
from jaxarch.files import write_whole
from jaxarch.tokenizer import END, byte_level_bpe

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TokenWindows:
    """Windows (N, length) of token ids for training and for testing, and perplexities by `baselines`."""

    train: Int[np.ndarray, "n t"]
    test: Int[np.ndarray, "m t"]
    baselines: Mapping[str, float]


def pydoc_windows(out: Path, vocab_size: int, length: int, stride: int) -> TokenWindows:
    """pydoc's help topics in byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics and stored in `out`. Training windows begin every `stride`
    tokens, test windows do not overlap.

    Raises:
        UsageError, DataError: as `train_tokenizer` and `windows`.
    """
    train, test = help_topics()
    tokenizer = train_tokenizer(train, vocab_size, out)
    train_ids, test_ids = encode(tokenizer, train), encode(tokenizer, test)
    return TokenWindows(
        windows(train_ids, length, stride),
        windows(test_ids, length, length),
        baselines(train_ids, test_ids, vocab_size, length),
    )


def help_topics() -> tuple[list[str], list[str]]:
    """pydoc's help topics, about 465 KB of English: (training texts, every tenth for testing)."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    return [t for i, t in enumerate(texts) if i % 10], texts[::10]


def train_tokenizer(texts: list[str], vocab_size: int, out: Path) -> "Tokenizer":
    """A byte-level BPE tokenizer (Sennrich et al. 2016), stored as `out/tokenizer.json`, or read from there.

    Raises:
        UsageError: the vocabulary is smaller than the 256 bytes and the end-of-text token.
        DataError: the stored one has more tokens than the vocabulary.
    """
    tokenizers = require("tokenizers", "hub", "training a tokenizer")
    path = out / TOKENIZER
    if path.exists():
        stored = tokenizers.Tokenizer.from_file(str(path))
        if stored.get_vocab_size() > vocab_size:
            raise DataError(
                f"{path} has {stored.get_vocab_size()} tokens, the model {vocab_size}: use another --out"
            )
        return stored
    tokenizer = byte_level_bpe(texts, vocab_size)
    write_whole(path, tokenizer.save)
    return tokenizer


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a run as `transformers` knows it.

    Raises:
        DataError: there is none.
        UsageError: transformers is not installed.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer; is this the folder of a trained language model?")
    transformers = require("transformers", "hub", "reading a tokenizer")
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END)


def encode(tokenizer: "Tokenizer", texts: list[str]) -> Int[np.ndarray, " n"]:
    """All texts as one row of ids, each text closed by the end-of-text token."""
    end = tokenizer.token_to_id(END)
    return np.array([i for e in tokenizer.encode_batch(texts) for i in (*e.ids, end)], np.int32)


def windows(ids: Int[np.ndarray, " n"], length: int, stride: int) -> Int[np.ndarray, "w t"]:
    """Windows (W, length) of a row of ids, one every `stride`; a shorter one at the end is left out.

    Raises:
        DataError: there is less text than one window.
    """
    if len(ids) < length:
        raise DataError(
            f"the text has {len(ids)} tokens, fewer than one window of {length}: lower max_seq_len"
        )
    return np.lib.stride_tricks.sliding_window_view(ids, length)[::stride].copy()


def baselines(
    train: Int[np.ndarray, " n"], test: Int[np.ndarray, " m"], vocab: int, length: int
) -> Mapping[str, float]:
    """Perplexities of n-gram models on the tokens that a language model is tested on.

    "unigram" has add-one smoothing; "bigram" is interpolated with it, with the weight that is best on the last
    tenth of the training text.
    """
    fitted, held_out = np.split(train, [len(train) * 9 // 10])

    def unigram(ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, " v"]:
        counts = np.bincount(ids, minlength=vocab) + 1.0
        return counts / counts.sum()

    def bigram(
        ids: Int[np.ndarray, " n"], previous: Int[np.ndarray, " k"], following: Int[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        pairs = np.zeros((vocab, vocab), np.float32)
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
        totals = np.maximum(pairs.sum(1), 1)
        return pairs[previous, following] / totals[previous]

    single, double = unigram(fitted)[held_out[1:]], bigram(fitted, held_out[:-1], held_out[1:])
    weights = np.linspace(0.05, 0.95, 19)
    best = max(weights, key=lambda w: np.log(w * double + (1 - w) * single).mean())
    rows = windows(test, length, length)
    previous, following = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    single = unigram(train)[following]
    mixed = best * bigram(train, previous, following) + (1 - best) * single
    return {"unigram": float(np.exp(-np.log(single).mean())), "bigram": float(np.exp(-np.log(mixed).mean()))}
