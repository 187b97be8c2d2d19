"""Losses of numbers and of distributions, element by element."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.losses.numerics import finite, reduce, upcast


def mse_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.mse_loss: the squared difference, without a half."""
    return reduce(jnp.square(upcast(input) - upcast(target)), reduction)


def l1_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.l1_loss: the gradient is 0 where both are equal."""
    difference = upcast(input) - upcast(target)
    return reduce(jnp.where(difference == 0, 0, jnp.abs(difference)), reduction)


def smooth_l1_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, beta: float = 1.0, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.smooth_l1_loss: Huber's loss over `beta`; the absolute difference for beta 0."""
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return reduce(_huber(upcast(input) - upcast(target), beta) / beta, reduction)


def huber_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, delta: float = 1.0, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.huber_loss: half the square up to `delta`, then a line (Huber 1964)."""
    return reduce(_huber(upcast(input) - upcast(target), delta), reduction)


def kl_div(
    input: Float[Array, "*b"],
    target: Float[Array, "*b"],
    *,
    log_target: bool = False,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """torch.nn.functional.kl_div of log-probabilities `input` against probabilities `target`.

    "mean" is over all elements, "batchmean" the sum over the size of the first dim. A target of 0 gets no gradient.
    """
    x, y = finite(upcast(input)), upcast(target)
    if log_target:
        y = finite(y)
        loss = jnp.exp(y) * (y - x)
    else:
        y = jnp.where(y == 0, 0, y)
        loss = y * jnp.log(jnp.where(y == 0, 1, y)) - y * x
    return reduce(loss, "mean", loss.shape[0]) if reduction == "batchmean" else reduce(loss, reduction)


def _huber(difference: Float[Array, "*b"], delta: float) -> Float[Array, "*b"]:
    """As a sum of two terms, each of which has a gradient everywhere."""
    size = jnp.abs(difference)
    near = jnp.minimum(size, delta)
    return 0.5 * near**2 + delta * (size - near)
