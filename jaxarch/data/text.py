"""Text: a tokenizer, windows, baselines, and continuing a prompt with a trained model."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxarch.errors import DataError
from jaxarch.tokenizer import END, byte_level_bpe

TOKENIZER = "tokenizer.json"


def topics() -> tuple[list[str], list[str]]:
    """pydoc's help topics, about 465 KB of English: (training texts, every tenth for testing)."""
    from pydoc_data import topics

    texts = [topics.topics[name] for name in sorted(topics.topics)]
    return [t for i, t in enumerate(texts) if i % 10], texts[::10]


def train_tokenizer(texts: list[str], vocab_size: int, out: Path):
    """A byte-level BPE tokenizer (Sennrich et al. 2016), kept as `out/tokenizer.json`, or read from there.

    Raises:
        UsageError: the vocabulary is smaller than the 256 bytes and the end mark.
        DataError: the kept one has another vocabulary.
    """
    import tokenizers

    path = out / TOKENIZER
    if path.exists():
        kept = tokenizers.Tokenizer.from_file(str(path))
        if kept.get_vocab_size() > vocab_size:
            raise DataError(
                f"{path} has {kept.get_vocab_size()} tokens, the model {vocab_size}: use another --out"
            )
        return kept
    tokenizer = byte_level_bpe(texts, vocab_size)
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tokenizer.save(str(temporary))
    os.replace(temporary, path)
    return tokenizer


def load_tokenizer(folder: Path):
    """The tokenizer of a run as `transformers` knows it.

    Raises:
        DataError: there is none.
    """
    from transformers import PreTrainedTokenizerFast

    path = folder / TOKENIZER
    if not path.is_file():
        raise DataError(f"{path}: no tokenizer; is this the folder of a trained language model?")
    return PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token=END)


def encode(tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one row of ids, each text closed by the end mark."""
    end = tokenizer.token_to_id(END)
    return np.array([i for e in tokenizer.encode_batch(texts) for i in (*e.ids, end)], np.int32)


def windows(ids: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Windows (N, length) of a row of ids, one every `stride`; a short rest is left out.

    Raises:
        DataError: there is less text than one window.
    """
    if len(ids) < length:
        raise DataError(
            f"the text has {len(ids)} tokens, fewer than one window of {length}: lower max_seq_len"
        )
    return np.lib.stride_tricks.sliding_window_view(ids, length)[::stride].copy()


def baselines(train: np.ndarray, test: np.ndarray, vocab: int, length: int) -> Mapping[str, float]:
    """Perplexities, on the tokens the model is tested on, of counts with one added (unigram) and of a bigram
    model interpolated with it, its weight chosen on the last tenth of the training text."""
    own, held = np.split(train, [len(train) * 9 // 10])

    def unigram(ids):
        counts = np.bincount(ids, minlength=vocab) + 1.0
        return counts / counts.sum()

    def bigram(ids, previous, following):
        pairs = np.zeros((vocab, vocab), np.float32)
        np.add.at(pairs, (ids[:-1], ids[1:]), 1)
        totals = np.maximum(pairs.sum(1), 1)
        return pairs[previous, following] / totals[previous]

    single, double = unigram(own)[held[1:]], bigram(own, held[:-1], held[1:])
    weights = np.linspace(0.05, 0.95, 19)
    best = max(weights, key=lambda w: np.log(w * double + (1 - w) * single).mean())
    rows = windows(test, length, length)
    previous, following = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    single = unigram(train)[following]
    mixed = best * bigram(train, previous, following) + (1 - best) * single
    return {"unigram": float(np.exp(-np.log(single).mean())), "bigram": float(np.exp(-np.log(mixed).mean()))}
