"""Data that every installation carries, in batches that follow from the seed and the step alone.

The folder is the registry: `data = "x"` in a recipe calls `load` of `x.py`, whose keyword arguments beyond
`out`, `arguments` and `seed` are the recipe's options.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxarch.data import sets
from jaxarch.errors import UsageError, unknown

Batch = dict[str, np.ndarray]
GIVEN = ("out", "arguments", "seed")


def working_dtype(dtype: Any) -> np.dtype:
    """What numbers of a dtype are computed in, however wide they were read: JAX's own floats and integers."""
    kinds = {"f": jnp.result_type(float), "i": jnp.result_type(int)}
    return kinds.get(np.dtype(dtype).kind, np.dtype(dtype))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Training and evaluation examples as arrays with one row per example.

    `items` is what one example counts in throughput (tokens of a window, or 1), `unit` what it is called.
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
        """The batch of a step: every example once an epoch, in an order drawn from the seed and the epoch."""
        count = len(next(iter(self.train.values())))
        if size > count:
            raise UsageError(f"batch_size {size} exceeds the {count} training examples")
        each = count // size
        order = np.random.default_rng((seed, step // each)).permutation(count)
        rows = order[step % each * size : (step % each + 1) * size]
        batch = {k: v[rows] for k, v in self.train.items()}
        return self.augment(batch, np.random.default_rng((seed, step, 1))) if self.augment else batch

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
        DataError: this installation does not carry the data.
    """
    known = [m.name for m in pkgutil.iter_modules(sets.__path__)]
    if name not in known:
        raise unknown("data", name, known)
    make = importlib.import_module(f"{sets.__name__}.{name}").load
    allowed = [p for p in inspect.signature(make).parameters if p not in GIVEN]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of data {name}", option, allowed)
    return make(out=out, arguments=arguments, seed=seed, **options)
