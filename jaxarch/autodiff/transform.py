"""Transformations of gradients between the backward pass and the optimizer: clipping, accumulation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxarch.errors import UsageError
from jaxarch.optim import clip_by_global_norm


def GradientClipper(
    max_norm: float | None = None, max_value: float | None = None
) -> optax.GradientTransformation:
    """Clip each entry to [-max_value, max_value], then all together to the norm max_norm, as torch does.

    Raises:
        UsageError: neither is given, or one is not positive.
    """
    given = [v for v in (max_norm, max_value) if v is not None]
    if not given or min(given) <= 0:
        raise UsageError(f"max_norm {max_norm} or max_value {max_value} must be a positive number")
    parts = [] if max_value is None else [optax.clip(max_value)]
    parts += [] if max_norm is None else [clip_by_global_norm(max_norm)]
    return optax.chain(*parts)


class AccumulatorState(NamedTuple):
    """The number of gradients accumulated, their part of the mean, and the inner optimizer's state."""

    count: Any
    total: Any
    inner: Any


def GradientAccumulator(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """Step with the mean of `every` gradients; the updates in between are zero.

    Raises:
        UsageError: `every` is not positive.
    """
    if every < 1:
        raise UsageError(f"every must be at least 1, not {every}")

    def init(params: Any) -> AccumulatorState:
        return AccumulatorState(
            jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), optimizer.init(params)
        )

    def update(updates: Any, state: AccumulatorState, params: Any = None) -> tuple[Any, AccumulatorState]:
        # optax.MultiSteps keeps a running mean with float32 weights; torch sums g / every.
        total = jax.tree.map(lambda t, g: t + g / every, state.total, updates)
        zeros = jax.tree.map(jnp.zeros_like, total)

        def take() -> tuple[Any, AccumulatorState]:
            inner_updates, inner = optimizer.update(total, state.inner, params)
            return inner_updates, AccumulatorState(jnp.zeros((), jnp.int32), zeros, inner)

        def wait() -> tuple[Any, AccumulatorState]:
            return zeros, AccumulatorState(state.count + 1, total, state.inner)

        return jax.lax.cond(state.count + 1 == every, take, wait)

    return optax.GradientTransformation(init, update)
