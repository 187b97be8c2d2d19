"""Loss scaling for float16, as torch.amp.GradScaler: a small state beside the optimizer's, inside jit.

loss, grads = jax.value_and_grad(lambda p: scaler.scaled(loss_of(p), opt_state))(params)
updates, opt_state = optimizer.update(grads, opt_state, params)  # of `loss_scaling(optimizer)`
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import UsageError


class LossScale(NamedTuple):
    """GradScaler's state: the scale, in float32, and the number of finite steps since it last changed."""

    scale: Float[Array, ""]
    growth_tracker: Int[Array, ""]


class ScalerState(NamedTuple):
    """The state of `loss_scaling`: the scale, the number of skipped steps, and the optimizer's state."""

    loss_scale: LossScale
    skipped: Int[Array, ""]
    inner: Any


def create_loss_scale(init_scale: float = 65536.0) -> LossScale:
    """The state before the first step."""
    return LossScale(jnp.asarray(init_scale, jnp.float32), jnp.zeros((), jnp.int32))


def scaled(loss: Float[Array, ""], state: LossScale | ScalerState) -> Float[Array, ""]:
    """The loss times the scale: what to differentiate."""
    loss_scale = state.loss_scale if isinstance(state, ScalerState) else state
    return loss * loss_scale.scale.astype(loss.dtype)


def unscale(grads: Any, state: LossScale) -> tuple[Any, Bool[Array, ""]]:
    """(the gradients divided by the scale, whether all of them are finite)."""
    finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all()
    # Not times the inverse, which is denormal for the largest scales: some devices flush it to 0.
    return jax.tree.map(lambda g: g / state.scale.astype(g.dtype), grads), finite


def update_loss_scale(
    state: LossScale,
    finite: Bool[Array, ""],
    *,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
) -> LossScale:
    """GradScaler.update: reduced after a step that was not finite, raised after `growth_interval` finite ones."""
    tracker = state.growth_tracker + 1
    due = tracker >= growth_interval
    raised = state.scale * growth_factor
    scale = jnp.where(due & jnp.isfinite(raised), raised, state.scale)
    return LossScale(
        scale=jnp.where(finite, scale, state.scale * backoff_factor),
        growth_tracker=jnp.where(finite & ~due, tracker, 0),
    )


def loss_scaling(
    inner: optax.GradientTransformation,
    *,
    init_scale: float = 65536.0,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
) -> optax.GradientTransformation:
    """An optimizer that takes the gradients of the scaled loss, and skips the step if one is not finite.

    A skipped step changes neither the parameters nor the optimizer's state, the step of its schedule included.

    Raises:
        UsageError: a factor or interval that torch refuses.
    """
    if growth_factor <= 1 or not 0 < backoff_factor < 1 or growth_interval < 1 or init_scale <= 0:
        raise UsageError(
            "loss scaling needs growth_factor > 1, 0 < backoff_factor < 1, growth_interval >= 1, init_scale > 0"
        )

    def init(params: Any) -> ScalerState:
        return ScalerState(create_loss_scale(init_scale), jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Any, state: ScalerState, params: Any = None) -> tuple[Any, ScalerState]:
        grads, finite = unscale(updates, state.loss_scale)
        updates, new_inner = inner.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        new_inner = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_inner, state.inner)
        loss_scale = update_loss_scale(
            state.loss_scale,
            finite,
            growth_factor=growth_factor,
            backoff_factor=backoff_factor,
            growth_interval=growth_interval,
        )
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return updates, ScalerState(loss_scale, skipped, new_inner)

    return optax.GradientTransformation(init, update)
