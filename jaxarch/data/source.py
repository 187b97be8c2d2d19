"""What training asks of data, wherever it comes from."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

Batch: TypeAlias = dict[str, np.ndarray]


class Source(Protocol):
    """Batches to train on, each a function of seed and step, and batches to evaluate on.

    Every array has one row per example. The keys are the model's arguments and what the task reads besides,
    such as "label"; a label of -100 says that there is none for this example, node or token.
    """

    @property
    def classes(self) -> int:
        """The number of classes of the labels; 0 where they are not classes."""

    @property
    def items(self) -> int:
        """How many items one example counts in throughput: the tokens of a window, or 1."""

    @property
    def unit(self) -> str:
        """What an item is called, in the plural."""

    @property
    def extra(self) -> Mapping[str, Any]:
        """What reports show of the data, such as baselines; training does not read it."""

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The training batch of a step, the same whenever it is asked for."""

    def evaluation(self, size: int) -> Iterator[Batch]:
        """Batches of one size over all test examples, each with "valid" (B,), False in rows of padding."""


def working_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype that numbers are computed in, whatever they were read as: JAX's default float or integer."""
    kinds = {"f": jnp.result_type(float), "i": jnp.result_type(int)}
    return kinds.get(np.dtype(dtype).kind, np.dtype(dtype))
