"""The text of Python's own language reference as parallel streams that go on from batch to batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxarch.data import text
from jaxarch.data.array_source import batches_per_epoch, padded_batches
from jaxarch.data.source import Batch, Source


@dataclass(frozen=True, kw_only=True)
class Streams:
    """A `Source` of windows of ids in the order of the text.

    Row b of a step's batch continues row b of the step before; `fresh` (B,) marks the rows that begin anew. The
    training text is cut in as many streams as the batch has rows; each epoch begins its streams at another
    window, drawn from the seed and the epoch.
    """

    train: Int[np.ndarray, "n t"]
    test: Int[np.ndarray, "m t"]
    classes: int
    items: int = 1
    unit: str = "tokens"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The windows of a step.

        Raises:
            UsageError: there are fewer windows than that.
        """
        count = len(self.train)
        length = batches_per_epoch(count, size)
        epoch, index = divmod(step, length)
        shift = np.random.default_rng((seed, epoch)).integers(count)
        rows = (np.arange(size) * length + index + shift) % count
        return {"ids": self.train[rows], "fresh": (rows == 0) | (index == 0)}

    def evaluation(self, size: int) -> Iterator[Batch]:
        """The test windows in order, each on its own."""
        return padded_batches({"ids": self.test, "fresh": np.ones(len(self.test), bool)}, size)


def load(*, out: Path, arguments: Mapping[str, Any], length: int = 64) -> Source:
    """Windows ids (N, length) of pydoc_data.topics in byte-level BPE tokens; every tenth topic is for testing.

    The tokenizer is trained on the training topics and stored in `out`; the model's last id is left to a mask.
    `extra` holds the perplexities of a unigram and of an interpolated bigram model on the test tokens.
    """
    windows = text.pydoc_windows(out, arguments["vocab_size"] - 1, length, stride=length)
    return Streams(
        train=windows.train,
        test=windows.test,
        classes=arguments["vocab_size"],
        items=length,
        extra={"baselines": windows.baselines},
    )
