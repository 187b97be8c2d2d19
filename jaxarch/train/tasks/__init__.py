"""What is trained: how a batch becomes losses, metrics and samples.

The folder is the registry: `task = "x"` in a recipe calls `make` of `x.py`, whose keyword arguments are the
recipe's `label_smoothing`, if it takes that, and its `task_options`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError, UsageError, unknown

IGNORE_INDEX = -100  # torch's: the label of an example, node or token that has none
Batch: TypeAlias = Mapping[str, Any]
# A loss, or a loss and further scalars for the log. Tasks call the model by its own arguments, so it is `Any`.
LossOutput: TypeAlias = Array | tuple[Array, dict[str, Array]]
Loss: TypeAlias = Callable[[Any, Batch], LossOutput]


def identity(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The catalog's model is what is trained."""
    return model


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimizer's part of a step: the loss and the glob of the paths that it trains.

    `loss(model, batch)` is a scalar, or a scalar and a dictionary of further scalars for the log.
    `times`: how often in a row, each time with another draw. `bound`: the weights are clipped to [-bound, bound]
    after each; 0 for none.
    """

    loss: Loss
    trains: str = "*"
    times: int = 1
    bound: float = 0.0


class Score(NamedTuple):
    """The metric that selects the best checkpoint."""

    metric: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """One or several updates, taken in order in each step, an evaluation, and for generative models a sampler.

    wrap(model, sample, classes, rngs) -> the module that is trained; draw(key, batch) -> the batch with the
    randomness of one update (noise, times) added, inside the compiled step; tally(model, batch) -> sums over
    the valid rows of an evaluation batch, of any shape; summary(sums) -> metrics, numbers.

    sample(model, like, key, labels, **settings) -> images (N, ...) in [-1, 1], one for each of labels (N,); `like`
    has the shapes of a training batch. Its keyword arguments are the settings that `jaxarch sample` offers.
    """

    updates: Mapping[str, Update]
    tally: Callable[[Any, Batch], dict[str, Array]]
    summary: Callable[[Mapping[str, Any]], dict[str, Any]]
    score: Score
    wrap: Callable[[nnx.Module, Batch, int, nnx.Rngs], nnx.Module] = identity
    draw: Callable[[jax.Array, Batch], Batch] | None = None
    sample: Callable[..., Array] | None = None


def inputs_of(batch: Batch) -> dict[str, Array]:
    """The model's arguments: everything but "label" and "valid"."""
    return {k: v for k, v in batch.items() if k not in ("label", "valid")}


def valid_rows(batch: Batch) -> Bool[Array, " b"]:
    """(B,) True for the rows of an evaluation batch that are examples, False for its padding.

    Raises:
        DataError: the batch does not say so.
    """
    if "valid" not in batch:
        raise DataError('an evaluation batch lacks "valid" (B,): yield it from the evaluation of the data')
    return batch["valid"]


def valid_weights(batch: Batch, dtype: DTypeLike) -> Float[Array, " b"]:
    """(B,) 1 for the rows of an evaluation batch that are examples, 0 for its padding."""
    return valid_rows(batch).astype(dtype)


def valid_labels(batch: Batch, key: str = "label") -> Int[Array, "b *t"]:
    """The labels of an evaluation batch, IGNORE_INDEX in all rows of its padding."""
    valid, labels = valid_rows(batch), batch[key]
    return jnp.where(valid.reshape(*valid.shape, *(1,) * (labels.ndim - valid.ndim)), labels, IGNORE_INDEX)


def task(name: str, *, label_smoothing: float = 0.0, **options: Any) -> Task:
    """The task of a recipe.

    Raises:
        UsageError: unknown name or option, or label smoothing for a task that has no labels to smooth.
    """
    known = [m.name for m in pkgutil.iter_modules(__path__)]
    if name not in known:
        raise unknown("task", name, known)
    make = importlib.import_module(f"{__name__}.{name}").make
    allowed = inspect.signature(make).parameters
    if "label_smoothing" in allowed:
        options["label_smoothing"] = label_smoothing
    elif label_smoothing:
        raise UsageError(f"task {name} takes no label_smoothing")
    for option in options:
        if option not in allowed:
            raise unknown(f"option of task {name}", option, allowed)
    return make(**options)
