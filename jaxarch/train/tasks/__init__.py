"""What is trained: how a batch becomes losses, and how results are counted.

The folder is the registry: `task = "x"` in a recipe calls `make` of `x.py`, whose keyword arguments are the
recipe's `label_smoothing`, if it takes that, and its `task_options`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from jaxarch.errors import UsageError, unknown

Batch = Mapping[str, Any]
Loss = Callable[[nnx.Module, Batch], Any]


def as_it_is(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The catalog's model is what is trained."""
    return model


@dataclass(frozen=True, kw_only=True)
class Update:
    """One optimizer's part of a step: the loss and the glob of the paths that it trains.

    `loss(model, batch)` is a scalar, or a scalar and a dictionary of further scalars for the log.
    `times`: how often in a row, each time with another draw. `bound`: the weights are cut to [-bound, bound]
    after each; 0 for none.
    """

    loss: Loss
    trains: str = "*"
    times: int = 1
    bound: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One or several updates, taken in order in each step, and an evaluation.

    wrap(model, sample, classes, rngs) -> the module that is trained; draw(key, batch) -> the batch with the
    randomness of one update (noise, times) added, inside the compiled step; tally(model, batch) -> sums over
    the batch, of any shape; summary(sums) -> metrics, numbers; score: the metric that selects the best
    checkpoint, and whether more of it is better.
    """

    updates: Mapping[str, Update]
    tally: Callable[[nnx.Module, Batch], dict[str, Array]]
    summary: Callable[[Mapping[str, Any]], dict[str, Any]]
    score: tuple[str, bool]
    wrap: Callable[[nnx.Module, Batch, int, nnx.Rngs], nnx.Module] = as_it_is
    draw: Callable[[jax.Array, Batch], Batch] | None = None


def inputs_of(batch: Batch) -> dict[str, Array]:
    """The model's arguments: everything but the label."""
    return {k: v for k, v in batch.items() if k != "label"}


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
