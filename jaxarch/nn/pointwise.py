"""Element-wise activations as layers under torch's names and defaults.

Arrays are not modified: `inplace` is accepted for torch's sake and has no effect.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import activation as functions
from jaxarch.nn.init import float_dtype
from jaxarch.nn.module import Module


class ReLU(Module):
    """max(x, 0). Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.relu(input)


class ReLU6(Module):
    """min(max(x, 0), 6). Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.relu6(input)


class LeakyReLU(Module):
    """max(x, slope * x). Any shape."""

    def __init__(self, negative_slope: float | int = 0.01, inplace: bool = False):
        self.negative_slope, self.inplace = negative_slope, inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.leaky_relu(input, self.negative_slope)


class ELU(Module):
    """x above 0, else alpha * (exp(x) - 1). Any shape."""

    def __init__(self, alpha: float | int = 1.0, inplace: bool = False):
        self.alpha, self.inplace = alpha, inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.elu(input, self.alpha)


class CELU(Module):
    """x above 0, else alpha * (exp(x / alpha) - 1). Any shape."""

    def __init__(self, alpha: float | int = 1.0, inplace: bool = False):
        self.alpha, self.inplace = alpha, inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.celu(input, self.alpha)


class SELU(Module):
    """The self-normalising ELU. Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.selu(input)


class GELU(Module):
    """x * Phi(x), exact or by its "tanh" approximation. Any shape.

    Raises:
        UsageError: approximate is neither "none" nor "tanh".
    """

    def __init__(self, approximate: str = "none"):
        if approximate not in ("none", "tanh"):
            raise unknown("approximation", approximate, ("none", "tanh"))
        self.approximate = approximate

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.gelu(input) if self.approximate == "none" else functions.gelu_tanh(input)


class GLU(Module):
    """a * sigmoid(b), a and b the halves of x along `dim`, which counts this array's axes: channels are -1.

    Raises:
        DataError: in the call, if that axis is odd.
    """

    def __init__(self, dim: int = -1):
        self.dim = dim

    def __call__(self, input: Float[Array, "..."]) -> Float[Array, "..."]:
        return functions.glu(input, self.dim)


class SiLU(Module):
    """x * sigmoid(x). Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.silu(input)


class Mish(Module):
    """x * tanh(softplus(x)). Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.mish(input)


class Sigmoid(Module):
    """1 / (1 + exp(-x)). Any shape."""

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.sigmoid(input)


class LogSigmoid(Module):
    """log(sigmoid(x)). Any shape."""

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.log_sigmoid(input)


class Tanh(Module):
    """tanh(x). Any shape."""

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.tanh(input)


class Tanhshrink(Module):
    """x - tanh(x). Any shape."""

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.tanhshrink(input)


class Hardshrink(Module):
    """x, but 0 from -lambd to lambd. Any shape."""

    def __init__(self, lambd: float | int = 0.5):
        self.lambd = lambd

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.hardshrink(input, self.lambd)


class Softshrink(Module):
    """x moved towards 0 by lambd; 0 from -lambd to lambd. Any shape.

    Raises:
        UsageError: lambd is negative.
    """

    def __init__(self, lambd: float | int = 0.5):
        if lambd < 0:
            raise UsageError(f"lambd must be at least 0, not {lambd}")
        self.lambd = lambd

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.softshrink(input, self.lambd)


class Hardtanh(Module):
    """x limited to [min_val, max_val]. Any shape.

    Raises:
        UsageError: min_val is not below max_val.
    """

    def __init__(self, min_val: float | int = -1.0, max_val: float | int = 1.0, inplace: bool = False):
        if min_val >= max_val:
            raise UsageError(f"min_val {min_val} must be below max_val {max_val}")
        self.min_val, self.max_val, self.inplace = min_val, max_val, inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.hardtanh(input, self.min_val, self.max_val)


class Hardsigmoid(Module):
    """x / 6 + 1 / 2 limited to [0, 1]. Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.hardsigmoid(input)


class Hardswish(Module):
    """x * hardsigmoid(x). Any shape."""

    def __init__(self, inplace: bool = False):
        self.inplace = inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.hardswish(input)


class Softplus(Module):
    """log(1 + exp(beta * x)) / beta; x itself where beta * x is above the threshold. Any shape."""

    def __init__(self, beta: float | int = 1.0, threshold: float | int = 20.0):
        self.beta, self.threshold = beta, threshold

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.softplus(input, self.beta, self.threshold)


class Softsign(Module):
    """x / (1 + |x|). Any shape."""

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.softsign(input)


class Threshold(Module):
    """x above the threshold, else the value. Any shape."""

    def __init__(self, threshold: float | int, value: float | int, inplace: bool = False):
        self.threshold, self.value, self.inplace = threshold, value, inplace

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.threshold(input, self.threshold, self.value)


class PReLU(Module):
    """max(x, 0) + weight * min(x, 0), the slope learned (He et al. 2015): one, or one for each channel.

    With several slopes the channels are the last axis; torch's are axis 1. Any shape.

    Raises:
        DataError: in the call, another number of channels than slopes.
    """

    def __init__(self, num_parameters: int = 1, init: float | int = 0.25, *, rngs: nnx.Rngs | None = None):
        self.num_parameters = num_parameters
        self.weight = nnx.Param(jnp.full(num_parameters, init, float_dtype()))

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        channels = input.shape[-1] if input.ndim > 1 else 1
        if self.num_parameters not in (1, channels):
            raise DataError(
                f"x of shape {input.shape} has {channels} channels, the layer {self.num_parameters} slopes"
            )
        weight = self.weight[...] if self.num_parameters > 1 else self.weight[...].reshape(())
        return jnp.where(input > 0, input, weight.astype(input.dtype) * input)


class RReLU(Module):
    """x above 0, else x times a slope drawn from U(lower, upper) for each element (Xu et al. 2015). Any shape.

    In eval mode the slope is (lower + upper) / 2.

    Raises:
        UsageError: lower is above upper.
    """

    def __init__(
        self, lower: float | int = 1 / 8, upper: float | int = 1 / 3, inplace: bool = False, *, rngs: nnx.Rngs
    ):
        if lower > upper:
            raise UsageError(f"lower {lower} must not be above upper {upper}")
        self.lower, self.upper, self.inplace = lower, upper, inplace
        self.deterministic = False
        self.rngs = rngs.dropout.fork()

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if self.deterministic:
            return functions.leaky_relu(input, (self.lower + self.upper) / 2)
        slopes = jax.random.uniform(self.rngs(), input.shape, input.dtype, self.lower, self.upper)
        return jnp.where(input > 0, input, slopes * input)
