"""Regularisers of GAN training: gradient penalties and feature matching."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch import state

Critic = nnx.Module | Callable[..., Array]


def gradient_penalty(
    critic: Critic,
    real: Float[Array, "b *s"],
    fake: Float[Array, "b *s"],
    mix: Float[Array, " b"],
    *inputs: Shaped[Array, "..."],
) -> Float[Array, ""]:
    """WGAN-GP's (norm of the critic's input gradient - 1)^2, on average (Gulrajani et al. 2017, arXiv:1704.00028).

    Taken between real and fake (B, ...), at real + mix (fake - real) with mix (B,) in [0, 1]. Where the
    gradient is zero the derivative of its norm is 0, as in torch: such a row counts in the value and has no
    gradient. `inputs` are the critic's further arguments. A critic that has state to update (batch norm, spectral
    norm) is given as the model itself: its one call here updates the state, as in torch.
    """
    x = real + mix.reshape(-1, *(1,) * (real.ndim - 1)) * (fake - real)
    gradient = _input_gradient(critic, jax.lax.stop_gradient(x), inputs)
    return jnp.square(norms(gradient.reshape(len(x), -1)) - 1).mean()


def real_penalty(
    critic: Critic, real: Float[Array, "b *s"], *inputs: Shaped[Array, "..."]
) -> Float[Array, ""]:
    """R1: the squared norm of the critic's input gradient at real (B, ...), on average (Mescheder et al. 2018,
    arXiv:1801.04406). Arguments as `gradient_penalty`'s."""
    gradient = _input_gradient(critic, real, inputs)
    return jnp.square(gradient.reshape(len(real), -1)).sum(1).mean()


def _input_gradient(
    critic: Critic, x: Float[Array, "b *s"], inputs: tuple[Array, ...]
) -> Float[Array, "b *s"]:
    """The gradient of the critic's summed scores with respect to x."""
    if not isinstance(critic, nnx.Module):
        return jax.grad(lambda x: critic(x, *inputs).sum())(x)
    graph, params, rest = state.split(critic)

    # State can be updated only where it was created: in a copy within the gradient, and then here.
    def total(x: Array) -> tuple[Array, state.Flat]:
        model = state.merge(graph, params, rest)
        scores = model(x, *inputs)  # type: ignore[operator]
        return scores.sum(), state.rest_of(model)

    gradient, new_rest = jax.grad(total, has_aux=True)(x)
    state.update(critic, new_rest)
    return gradient


def norms(rows: Float[Array, "b n"]) -> Float[Array, " b"]:
    """The length of each row; at zero the derivative is 0, as in torch, and not NaN."""
    squares = jnp.square(rows).sum(1)
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def feature_matching(real: Float[Array, "b f"], fake: Float[Array, "b f"]) -> Float[Array, ""]:
    """The squared distance of the mean features (B, F) (Salimans et al. 2016, arXiv:1606.03498, section 3.1)."""
    return jnp.square(real.mean(0) - fake.mean(0)).sum()
