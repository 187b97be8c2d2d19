"""Regularisers of GAN training: gradient penalties and feature matching."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gradient_penalty(
    critic: Callable[[Array], Array],
    real: Float[Array, "b *s"],
    fake: Float[Array, "b *s"],
    mix: Float[Array, " b"],
) -> Float[Array, ""]:
    """WGAN-GP's (norm of the critic's input gradient - 1)^2, on average (Gulrajani et al. 2017, arXiv:1704.00028).

    Taken between real and fake (B, ...), at real + mix (fake - real) with mix (B,) in [0, 1]. Where the
    gradient is zero the derivative of its norm is 0, as in torch: such a row counts in the value and has no
    gradient.
    """
    x = real + mix.reshape(-1, *(1,) * (real.ndim - 1)) * (fake - real)
    gradient = jax.grad(lambda x: critic(x).sum())(jax.lax.stop_gradient(x))
    return jnp.square(norms(gradient.reshape(len(x), -1)) - 1).mean()


def real_penalty(
    critic: Callable[[Array], Array],
    real: Float[Array, "b *s"],
) -> Float[Array, ""]:
    """R1: the squared norm of the critic's input gradient at real (B, ...), on average (Mescheder et al. 2018,
    arXiv:1801.04406)."""
    gradient = jax.grad(lambda x: critic(x).sum())(real)
    return jnp.square(gradient.reshape(len(real), -1)).sum(1).mean()


def norms(rows: Float[Array, "b n"]) -> Float[Array, " b"]:
    """The length of each row; at zero the derivative is 0, as in torch, and not NaN."""
    squares = jnp.square(rows).sum(1)
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def feature_matching(real: Float[Array, "b f"], fake: Float[Array, "b f"]) -> Float[Array, ""]:
    """The squared distance of the mean features (B, F) (Salimans et al. 2016, arXiv:1606.03498, section 3.1)."""
    return jnp.square(real.mean(0) - fake.mean(0)).sum()
