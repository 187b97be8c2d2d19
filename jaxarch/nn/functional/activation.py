"""Activations under torch.nn.functional's names.

`dim` counts the axes of the array as it is here: channels are the last. `inplace` is accepted for torch's sake and has
no effect.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxarch.errors import unknown
from jaxarch.nn import activation as functions
from jaxarch.nn.functional.random import Randomness, random_keys, uniform
from jaxarch.nn.pointwise import PReLU
from jaxarch.nn.softmax import implicit_dim

Values = Float[Array, "..."]


def relu(input: Values, inplace: bool = False) -> Values:
    """max(x, 0)."""
    return jax.nn.relu(input)


def relu6(input: Values, inplace: bool = False) -> Values:
    """min(max(x, 0), 6)."""
    return jax.nn.relu6(input)


def leaky_relu(input: Values, negative_slope: float = 0.01, inplace: bool = False) -> Values:
    """max(x, slope * x)."""
    return functions.leaky_relu(input, negative_slope)


def prelu(input: Values, weight: Float[Array, "..."]) -> Values:
    """max(x, 0) + weight * min(x, 0), with one slope or one for each channel, which is the last axis."""
    layer = PReLU(weight.size)
    layer.weight = nnx.Param(weight.reshape(-1))
    return layer(input)


def rrelu(
    input: Values,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
    *,
    rngs: Randomness = None,
) -> Values:
    """`leaky_relu` with slopes drawn from U(lower, upper) in training, else (lower + upper) / 2.

    Raises:
        UsageError: training without `rngs`.
    """
    if not training:
        return functions.leaky_relu(input, (lower + upper) / 2)
    slopes = uniform(rngs, "rrelu", input.shape, input.dtype, lower, upper)
    return jnp.where(input > 0, input, slopes * input)


def elu(input: Values, alpha: float = 1.0, inplace: bool = False) -> Values:
    """x above 0, else alpha * (exp(x) - 1)."""
    return functions.elu(input, alpha)


def celu(input: Values, alpha: float = 1.0, inplace: bool = False) -> Values:
    """x above 0, else alpha * (exp(x / alpha) - 1)."""
    return functions.celu(input, alpha)


def selu(input: Values, inplace: bool = False) -> Values:
    """ELU with the constants that keep mean 0 and variance 1."""
    return functions.selu(input)


def gelu(input: Values, approximate: str = "none") -> Values:
    """x * Phi(x), or its tanh approximation.

    Raises:
        UsageError: `approximate` is neither "none" nor "tanh".
    """
    if approximate not in ("none", "tanh"):
        raise unknown("approximation", approximate, ("none", "tanh"))
    return functions.gelu(input) if approximate == "none" else functions.gelu_tanh(input)


def glu(input: Values, dim: int = -1) -> Values:
    """a * sigmoid(b), a and b the halves of x along `dim`."""
    return functions.glu(input, dim)


def silu(input: Values, inplace: bool = False) -> Values:
    """x * sigmoid(x)."""
    return jax.nn.silu(input)


def mish(input: Values, inplace: bool = False) -> Values:
    """x * tanh(softplus(x))."""
    return functions.mish(input)


def hardtanh(input: Values, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Values:
    """x limited to [min_val, max_val]."""
    return functions.hardtanh(input, min_val, max_val)


def hardsigmoid(input: Values, inplace: bool = False) -> Values:
    """x / 6 + 1 / 2 limited to [0, 1]."""
    return functions.hardsigmoid(input)


def hardswish(input: Values, inplace: bool = False) -> Values:
    """x * hardsigmoid(x)."""
    return functions.hardswish(input)


def hardshrink(input: Values, lambd: float = 0.5) -> Values:
    """x, but 0 from -lambd to lambd."""
    return functions.hardshrink(input, lambd)


def softshrink(input: Values, lambd: float = 0.5) -> Values:
    """x moved towards 0 by lambd; 0 from -lambd to lambd."""
    return functions.softshrink(input, lambd)


def tanhshrink(input: Values) -> Values:
    """x - tanh(x)."""
    return functions.tanhshrink(input)


def threshold(input: Values, threshold: float, value: float, inplace: bool = False) -> Values:
    """x above the threshold, else the value."""
    return functions.threshold(input, threshold, value)


def softplus(input: Values, beta: float = 1.0, threshold: float = 20.0) -> Values:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x is above the threshold."""
    return functions.softplus(input, beta, threshold)


def softsign(input: Values) -> Values:
    """x / (1 + |x|)."""
    return functions.softsign(input)


def sigmoid(input: Values) -> Values:
    """1 / (1 + exp(-x))."""
    return jax.nn.sigmoid(input)


def logsigmoid(input: Values) -> Values:
    """log(sigmoid(x)), without overflow."""
    return jax.nn.log_sigmoid(input)


def tanh(input: Values) -> Values:
    """tanh(x)."""
    return jnp.tanh(input)


def softmax(
    input: Float[Array, "..."], dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None
) -> Values:
    """exp(x) / its sum along `dim`; None is torch's choice: 0 of 0, 1 or 3 axes, else 1. `dtype` casts x first."""
    return functions.softmax(*_cast(input, dim, dtype))


def log_softmax(
    input: Float[Array, "..."], dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None
) -> Values:
    """The logarithm of `softmax`, without its rounding."""
    return functions.log_softmax(*_cast(input, dim, dtype))


def softmin(
    input: Float[Array, "..."], dim: int | None = None, _stacklevel: int = 3, dtype: DTypeLike | None = None
) -> Values:
    """`softmax` of -x."""
    return functions.softmin(*_cast(input, dim, dtype))


def _cast(input: Values, dim: int | None, dtype: DTypeLike | None) -> tuple[Values, int]:
    return input if dtype is None else input.astype(dtype), implicit_dim(input.ndim) if dim is None else dim


def gumbel_softmax(
    logits: Values,
    tau: float = 1.0,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    *,
    rngs: Randomness = None,
) -> Values:
    """A sample of the Gumbel-softmax distribution (Jang et al. 2017); `hard` is one-hot, with the soft gradient.

    `eps` has no effect, as in torch.

    Raises:
        UsageError: no `rngs`.
    """
    noise = jax.random.gumbel(random_keys(rngs, "gumbel_softmax"), logits.shape, logits.dtype)
    soft = functions.softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    one = jax.nn.one_hot(soft.argmax(dim), soft.shape[dim], dtype=soft.dtype, axis=dim)
    return jax.lax.stop_gradient(one - soft) + soft
