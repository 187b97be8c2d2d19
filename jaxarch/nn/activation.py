"""Activations as functions and by name, with torch's values and torch's gradients at kinks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import DataError, unknown
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.module import Module

Function = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def leaky_relu(x: Float[Array, "..."], negative_slope: float | int = 0.01) -> Float[Array, "..."]:
    """max(x, slope * x). At 0 the derivative is the slope, as in torch (jax.nn's is 1)."""
    return jnp.where(x > 0, x, negative_slope * x)


def threshold(x: Float[Array, "..."], threshold: float | int, value: float | int) -> Float[Array, "..."]:
    """x above the threshold, else the value, without a gradient."""
    return jnp.where(x <= threshold, value, x)


def elu(
    x: Float[Array, "..."], alpha: float | int = 1.0, scale: float | int = 1.0, rate: float = 1.0
) -> Float[Array, "..."]:
    """scale * (x above 0, else alpha * (exp(rate * x) - 1)) (Clevert et al. 2016); at 0 the derivative from below."""
    # Without the inner where, exp overflows for large x and its derivative is NaN times 0.
    below = alpha * jnp.expm1(rate * jnp.where(x > 0, 0.0, x))
    return scale * jnp.where(x > 0, x, below)


def celu(x: Float[Array, "..."], alpha: float | int = 1.0) -> Float[Array, "..."]:
    """x above 0, else alpha * (exp(x / alpha) - 1) (Barron 2017)."""
    return elu(x, alpha, 1.0, 1 / alpha)


def selu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """ELU with the constants that keep mean 0 and variance 1 (Klambauer et al. 2017)."""
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * Phi(x) with the exact error function, torch's default (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation: torch's gelu(approximate="tanh"), GPT-2's gelu_new."""
    return jax.nn.gelu(x, approximate=True)


def glu(x: Float[Array, "..."], dim: int = -1) -> Float[Array, "..."]:
    """a * sigmoid(b), a and b the halves of x along `dim` (Dauphin et al. 2017).

    Raises:
        DataError: `dim` has an odd size.
    """
    if not x.ndim or x.shape[dim] % 2:
        raise DataError(f"glu halves dim {dim}, whose size must be even: x has shape {x.shape}")
    a, b = jnp.split(x, 2, dim)
    return a * jax.nn.sigmoid(b)


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * tanh(softplus(x)) (Misra 2019)."""
    return x * jnp.tanh(jax.nn.softplus(x))


def tanhshrink(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x - tanh(x)."""
    return x - jnp.tanh(x)


def hardshrink(x: Float[Array, "..."], lambd: float | int = 0.5) -> Float[Array, "..."]:
    """x, but 0 from -lambd to lambd."""
    return jnp.where((x >= -lambd) & (x <= lambd), 0.0, x)


def softshrink(x: Float[Array, "..."], lambd: float | int = 0.5) -> Float[Array, "..."]:
    """x moved towards 0 by lambd; 0 from -lambd to lambd."""
    return jnp.where((x >= -lambd) & (x <= lambd), 0.0, jnp.where(x > 0, x - lambd, x + lambd))


def hardtanh(
    x: Float[Array, "..."], min_val: float | int = -1.0, max_val: float | int = 1.0
) -> Float[Array, "..."]:
    """x limited to [min_val, max_val]; the derivative is 0 at both, as in torch."""
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x))


@jax.custom_jvp
def hardsigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / 6 + 1 / 2 limited to [0, 1]; the derivative's 1 / 6 is float32's for every dtype, as in torch."""
    return hardtanh(x, -3.0, 3.0) / 6 + 0.5


@hardsigmoid.defjvp
def _hardsigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return hardsigmoid(x), jnp.where((x > -3) & (x < 3), float(np.float32(1 / 6)) * dx, 0.0)


def hardswish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * hardsigmoid(x) (Howard et al. 2019)."""
    return jnp.where(x <= -3, 0.0, jnp.where(x >= 3, x, x * (x / 6 + 0.5)))


def softplus(
    x: Float[Array, "..."], beta: float | int = 1.0, threshold: float | int = 20.0
) -> Float[Array, "..."]:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x is above the threshold."""
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta)


def softsign(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x / (1 + |x|)."""
    return x / (1 + jnp.abs(x))


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x."""
    return x


def softmax(x: Float[Array, "*shape"], dim: int = -1) -> Float[Array, "*shape"]:
    """exp(x) / its sum along `dim`, which counts this array's axes; summed in float32 or wider."""
    rows = jnp.atleast_1d(x).astype(accumulation_dtype(x.dtype))
    return jax.nn.softmax(rows, dim).reshape(x.shape).astype(x.dtype)


def log_softmax(x: Float[Array, "*shape"], dim: int = -1) -> Float[Array, "*shape"]:
    """The logarithm of `softmax`, without its rounding."""
    rows = jnp.atleast_1d(x).astype(accumulation_dtype(x.dtype))
    return jax.nn.log_softmax(rows, dim).reshape(x.shape).astype(x.dtype)


def softmin(x: Float[Array, "*shape"], dim: int = -1) -> Float[Array, "*shape"]:
    """softmax(-x)."""
    return softmax(-x, dim)


ACTIVATIONS: dict[str, Function] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": leaky_relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "elu": elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": identity,
    "celu": celu,
    "selu": selu,
    "glu": glu,
    "mish": mish,
    "logsigmoid": jax.nn.log_sigmoid,
    "tanhshrink": tanhshrink,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "hardtanh": hardtanh,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "softplus": softplus,
    "softsign": softsign,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "softmin": softmin,
}


class Activation(Module):
    """An activation as a layer, so that it takes an index in a Sequential as in torch. Any shape."""

    def __init__(self, function: str | Function):
        self.function = get_activation(function)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
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
