"""The text of Python's own language reference as parallel streams that go on from batch to batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data import Batch, Source, text
from jaxarch.errors import UsageError


class Streams(Source):
    """Row b of a step's batch continues row b of the step before; `fresh` (B,) marks the rows that begin anew.

    The training text is cut in as many streams as the batch has rows; each epoch begins its streams at
    another window, drawn from the seed and the epoch.
    """

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The windows of a step, in the order of the text."""
        ids = self.train["ids"]
        each = len(ids) // size
        if not each:
            raise UsageError(f"batch_size {size} exceeds the {len(ids)} training examples")
        epoch, at = divmod(step, each)
        shift = np.random.default_rng((seed, epoch)).integers(len(ids))
        rows = (np.arange(size) * each + at + shift) % len(ids)
        return {"ids": ids[rows], "fresh": (rows == 0) | (at == 0), "label": self.train["label"][rows]}


def load(*, out: Path, arguments: Mapping[str, Any], seed: int, length: int = 64) -> Source:
    """Windows ids (N, length) of pydoc_data.topics in byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics and kept in `out`; the model's last id is left to a mask.
    `extra` holds the perplexities of a unigram and of an interpolated bigram model on the test tokens.
    """
    train, test = text.topics()
    vocab = arguments["vocab_size"] - 1
    tokenizer = text.train_tokenizer(train, vocab, out)
    ids = [text.encode(tokenizer, part) for part in (train, test)]
    parts = []
    for row in ids:
        windows = text.windows(row, length, length)
        count = len(windows)
        parts.append({"ids": windows, "fresh": np.ones(count, bool), "label": np.zeros(count, np.int32)})
    return Streams(
        train=parts[0],
        test=parts[1],
        classes=arguments["vocab_size"],
        items=length,
        unit="tokens",
        extra={"baselines": text.baselines(ids[0], ids[1], vocab, length)},
    )
