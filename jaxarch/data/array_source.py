"""Data that lies in memory as arrays."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxarch.data.source import Batch
from jaxarch.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """A `Source` of training and test arrays with one row per example.

    `augment(batch, rng)` changes a training batch with randomness that follows from the seed and the step.
    """

    train: Batch
    test: Batch
    classes: int
    items: int = 1
    unit: str = "examples"
    extra: Mapping[str, Any] = field(default_factory=dict)
    augment: Callable[[Batch, np.random.Generator], Batch] | None = None

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The batch of a step: every example once an epoch, in an order drawn from the seed and the epoch.

        Raises:
            UsageError: there are fewer examples than that.
        """
        count = len(next(iter(self.train.values())))
        epoch, index = divmod(step, batches_per_epoch(count, size))
        order = np.random.default_rng((seed, epoch)).permutation(count)
        rows = order[index * size : (index + 1) * size]
        batch = {k: v[rows] for k, v in self.train.items()}
        return self.augment(batch, np.random.default_rng((seed, step, 1))) if self.augment else batch

    def evaluation(self, size: int) -> Iterator[Batch]:
        """The test examples in order."""
        return padded_batches(self.test, size)


def batches_per_epoch(count: int, size: int) -> int:
    """How many whole batches of a size there are among `count` examples.

    Raises:
        UsageError: there is none.
    """
    if size > count:
        raise UsageError(f"batch_size {size} exceeds the {count} training examples")
    return count // size


def padded_batches(arrays: Batch, size: int) -> Iterator[Batch]:
    """Rows in order as batches of one size, the last padded with the first rows, and "valid" (B,)."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield {**{k: v[rows % count] for k, v in arrays.items()}, "valid": rows < count}
