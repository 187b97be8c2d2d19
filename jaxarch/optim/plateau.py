"""torch.optim.lr_scheduler.ReduceLROnPlateau: a learning rate that follows a metric and not the step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.errors import UsageError, unknown


class Plateau(NamedTuple):
    """The state of `ReduceLROnPlateau`: the rate to use next, and the attributes of torch's scheduler."""

    learning_rate: Float[Array, ""]
    best: Float[Array, ""]
    bad: Int[Array, ""]
    cooldown: Int[Array, ""]


class ReduceOnPlateau(NamedTuple):
    """init() -> state; update(state, metric) -> state."""

    init: Callable[[], Plateau]
    update: Callable[[Plateau, Any], Plateau]


def ReduceLROnPlateau(
    lr: float,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
) -> ReduceOnPlateau:
    """Two pure functions: `factor` times the rate when the metric stops improving.

    Raises:
        UsageError: an unknown mode, or a factor of 1 or more.
    """
    if mode not in ("min", "max"):
        raise unknown("mode", mode, ("min", "max"))
    if threshold_mode not in ("rel", "abs"):
        raise unknown("threshold_mode", threshold_mode, ("rel", "abs"))
    if factor >= 1:
        raise UsageError(f"factor {factor} must be below 1")
    sign = 1 if mode == "max" else -1

    def init() -> Plateau:
        dtype = jnp.result_type(float)
        zero = jnp.zeros((), jnp.int32)
        return Plateau(jnp.asarray(lr, dtype), jnp.asarray(-sign * math.inf, dtype), zero, zero)

    def update(state: Plateau, metric: Any) -> Plateau:
        metric = jnp.asarray(metric).astype(state.best.dtype)
        bound = (
            state.best * (1 + sign * threshold) if threshold_mode == "rel" else state.best + sign * threshold
        )
        better = metric > bound if mode == "max" else metric < bound
        cooling = state.cooldown > 0
        bad = jnp.where(better | cooling, 0, state.bad + 1)
        reduce = bad > patience
        lower = jnp.maximum(state.learning_rate * factor, min_lr)
        lower = jnp.where(state.learning_rate - lower > eps, lower, state.learning_rate)
        return Plateau(
            learning_rate=jnp.where(reduce, lower, state.learning_rate),
            best=jnp.where(better, metric, state.best),
            bad=jnp.where(reduce, 0, bad),
            cooldown=jnp.where(reduce, cooldown, jnp.maximum(state.cooldown - 1, 0)).astype(jnp.int32),
        )

    return ReduceOnPlateau(init, update)
