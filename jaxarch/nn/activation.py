"""Activations by name, with torch's values and torch's gradients at kinks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import unknown
from jaxarch.nn.module import Module

Function = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def leaky_relu(x: Float[Array, "..."], negative_slope: float = 0.01) -> Float[Array, "..."]:
    """max(x, slope * x). At 0 the derivative is the slope, as in torch (jax.nn's is 1)."""
    return jnp.where(x > 0, x, negative_slope * x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * Phi(x) with the exact error function, torch's default (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation: torch's gelu(approximate="tanh"), GPT-2's gelu_new."""
    return jax.nn.gelu(x, approximate=True)


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x."""
    return x


ACTIVATIONS: dict[str, Function] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": leaky_relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": identity,
}


class Activation(Module):
    """An activation as a layer, so that it takes an index in a Sequential as in torch. Any shape."""

    def __init__(self, function: str | Function):
        self.function = get_activation(function)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.function(x)


def get_activation(function: str | Function) -> Function:
    """The function of a name; a callable is returned unchanged.

    Raises:
        UsageError: unknown name; the known ones are listed.
    """
    if callable(function):
        return function
    if function not in ACTIVATIONS:
        raise unknown("activation", function, ACTIVATIONS)
    return ACTIVATIONS[function]
