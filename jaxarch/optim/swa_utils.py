"""torch.optim.swa_utils: averages of the weights along a run, and the schedule that goes with them.

Stochastic weight averaging (Izmailov et al. 2018) and exponential moving averages.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxarch.errors import UsageError, unknown
from jaxarch.optim.lr_scheduler import ANNEALS, Rate, Schedule

# (the average, the parameter, the number of averaged models) -> the new average
AverageFunction = Callable[[Any, Any, Any], Any]


def SWALR(lr: Any, swa_lr: float, anneal_epochs: int = 10, anneal_strategy: str = "cos") -> Schedule:
    """torch.optim.swa_utils.SWALR: from the rate to `swa_lr` in `anneal_epochs` steps, where it stays."""
    if anneal_strategy not in ANNEALS:
        raise unknown("anneal_strategy", anneal_strategy, ANNEALS)
    if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
        raise UsageError(f"anneal_epochs {anneal_epochs} must be an integer of at least 0")

    def share(s: Any, lib: Any) -> Any:
        t = lib.minimum(lib.maximum(s, 1.0 if anneal_epochs == 0 else 0.0) / max(anneal_epochs, 1), 1.0)
        return (1 - lib.cos(math.pi * t)) / 2 if anneal_strategy == "cos" else t

    def begun(start: Any) -> Rate:
        return lambda s: swa_lr * share(s, jnp) + start * (1 - share(s, jnp))

    def advance(value: float, t: int) -> float:
        before = share(float(max(t - 1, 0)), _Python) if t and anneal_epochs else 0.0
        first = swa_lr if before == 1 else (value - before * swa_lr) / (1 - before)
        alpha = share(float(t), _Python)
        return swa_lr * alpha + first * (1 - alpha)

    return Schedule("SWALR", lr, begun(lr), advance, begun=begun)


class _Python:
    """Python's numbers under numpy's names."""

    minimum, maximum, cos = min, max, math.cos


class AveragedState(NamedTuple):
    """The average: torch's `n_averaged` and `module`, of parameters and of buffers."""

    n_averaged: Int[Array, ""]
    params: Any
    buffers: Any


class Averaging(NamedTuple):
    """init(params, buffers) -> state; update(state, params, buffers) -> state."""

    init: Callable[..., AveragedState]
    update: Callable[..., AveragedState]


def AveragedModel(avg_fn: AverageFunction | None = None, use_buffers: bool = False) -> Averaging:
    """torch.optim.swa_utils.AveragedModel as two pure functions of trees; `update` is `update_parameters`.

    The first update copies the parameters, later ones average by `avg_fn`, which is the equal average if None.
    Buffers are averaged with `use_buffers`, and otherwise those of the last update.
    """
    average = avg_fn or get_swa_avg_fn()

    def init(params: Any, buffers: Any = None) -> AveragedState:
        copied = jax.tree.map(jnp.copy, (params, {} if buffers is None else buffers))
        return AveragedState(jnp.zeros((), jnp.int32), *copied)

    def update(state: AveragedState, params: Any, buffers: Any = None) -> AveragedState:
        buffers = {} if buffers is None else buffers

        def step(old: jax.Array, new: jax.Array) -> jax.Array:
            with jax.numpy_dtype_promotion("standard"):
                averaged = average(old, new, state.n_averaged)
            return jnp.where(state.n_averaged == 0, new, averaged.astype(old.dtype))

        new_params = jax.tree.map(step, state.params, params)
        new_buffers = jax.tree.map(step, state.buffers, buffers) if use_buffers else buffers
        return AveragedState(state.n_averaged + 1, new_params, new_buffers)

    return Averaging(init, update)


def get_swa_avg_fn() -> AverageFunction:
    """The equal average of all models so far."""
    return lambda average, param, n: average + (param - average) / (n + 1)


def get_ema_avg_fn(decay: float = 0.999) -> AverageFunction:
    """The exponential moving average.

    Raises:
        UsageError: the decay is not in [0, 1].
    """
    if not 0 <= decay <= 1:
        raise UsageError(f"decay {decay} must be in [0, 1]")
    return lambda average, param, n: decay * average + (1 - decay) * param
