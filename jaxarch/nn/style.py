"""Layers of StyleGAN2 under its authors' names (Karras et al. 2020, arXiv:1912.04958)."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn import init
from jaxarch.nn.activation import leaky_relu
from jaxarch.nn.kernels import convolution
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional

SLOPE, GAIN = 0.2, math.sqrt(2)


class ConstantMap(Module):
    """A learned image, repeated for every sample: a batch size -> (B, size, size, channels)."""

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (1, 2, 0)}

    def __init__(self, channels: int, size: int, *, rngs: nnx.Rngs):
        weight = init.normal(1.0)(rngs.params(), (channels, size, size))
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))

    def __call__(self, batch: int) -> Float[Array, "b h w c"]:
        return jnp.broadcast_to(self.weight[...], (batch, *self.weight.shape))


class EqualizedLinear(Module):
    """Linear whose weight is scaled at run time: (..., in_features) -> (..., out_features).

    The stored weight is N(0, 1) / lr_multiplier; `leak` ends in a leaky ReLU of gain sqrt(2).
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (1, 0)}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        leak: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        weight = init.normal(1 / lr_multiplier)(rngs.params(), (out_features, in_features))
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        self.bias = nnx.Param(jnp.full((out_features,), bias_init / lr_multiplier, init.float_dtype()))
        self.scale, self.lr_multiplier, self.leak = (
            lr_multiplier / math.sqrt(in_features),
            lr_multiplier,
            leak,
        )

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = x @ (self.weight[...] * self.scale) + self.bias[...] * self.lr_multiplier
        return leaky(y) if self.leak else y


class EqualizedConv2d(Module):
    """Convolution that keeps the size, its weight scaled at run time: (B, H, W, C) -> (B, H, W, C').

    With `down` the image is blurred and halved first; with `leak` a leaky ReLU of gain sqrt(2) ends it.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 1, 0)}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        down: bool = False,
        leak: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        weight = init.normal(1.0)(rngs.params(), (out_channels, in_channels, kernel_size, kernel_size))
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        self.bias = optional(jnp.zeros(out_channels, init.float_dtype()) if bias else None)
        self.scale = 1 / math.sqrt(in_channels * kernel_size**2)
        self.down, self.leak = down, leak

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v o"]:
        x = blur_downsample(x) if self.down else x
        y = convolve(x, self.weight[...] * self.scale)
        y = y if self.bias is None else y + self.bias[...]
        return leaky(y) if self.leak else y


class ModulatedConv2d(Module):
    """A layer of the synthesis network: x (B, H, W, C), w (B, w_dim), noise (B, H', W') -> (B, H', W', C').

    The style of w scales the input channels; with `demodulate` each output map is divided by the norm of the
    weights it came from. With `up` the image is upsampled by 2 and blurred first. Then noise times `noise_strength`,
    the bias and a leaky ReLU; a layer without demodulation (to RGB) has only the bias, and a smaller style.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 1, 0)}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 3,
        up: bool = False,
        demodulate: bool = True,
        eps: float = 1e-8,
        *,
        rngs: nnx.Rngs,
    ):
        self.affine = EqualizedLinear(w_dim, in_channels, 1.0, rngs=rngs)
        weight = init.normal(1.0)(rngs.params(), (out_channels, in_channels, kernel_size, kernel_size))
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        self.bias = nnx.Param(jnp.zeros(out_channels, init.float_dtype()))
        self.noise_strength = optional(jnp.zeros((), init.float_dtype()) if demodulate else None)
        self.gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.up, self.demodulate, self.eps = up, demodulate, eps

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        w: Float[Array, "b d"],
        noise: Float[Array, "b u v"] | None = None,
    ) -> Float[Array, "b u v o"]:
        style, weight = self.affine(w), self.weight[...]
        if not self.demodulate:
            style = style * self.gain
        x = blur_upsample(x) if self.up else x
        y = convolve(x * style[:, None, None, :], weight)
        if self.demodulate:
            norms = jnp.square(style) @ jnp.square(weight).sum((0, 1))
            y = y * jax.lax.rsqrt(norms + self.eps)[:, None, None, :]
        if self.noise_strength is not None and noise is not None:
            y = y + noise[..., None] * self.noise_strength[...]
        y = y + self.bias[...]
        return leaky(y) if self.demodulate else y


class MinibatchStd(Module):
    """Appends one map, the standard deviation among images: (B, H, W, C) -> (B, H, W, C + 1).

    Its value is the mean over channels and pixels of the standard deviation within groups of `group_size`
    images; the groups interleave.

    Raises:
        DataError: in the call, a group that does not divide the batch.
    """

    def __init__(self, group_size: int = 4):
        self.group_size = group_size

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        group = min(self.group_size, len(x))
        if len(x) % group:
            raise DataError(f"a batch of {len(x)} does not divide into groups of {group}")
        grouped = x.reshape(group, -1, *x.shape[1:])
        variance = jnp.square(grouped - grouped.mean(0)).mean(0)
        deviation = jnp.tile(jnp.sqrt(variance + 1e-8).mean((1, 2, 3)), group)
        return jnp.concatenate((x, jnp.broadcast_to(deviation[:, None, None, None], (*x.shape[:3], 1))), -1)


def leaky(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Leaky ReLU of slope 0.2, scaled to keep the variance."""
    return leaky_relu(x, SLOPE) * GAIN


def convolve(x: Float[Array, "b h w i"], weight: Float[Array, "k k i o"]) -> Float[Array, "b h w o"]:
    """A convolution with an odd kernel that keeps the size."""
    pads = ((weight.shape[0] // 2,) * 2,) * 2
    return convolution.convolve(x, weight, (1, 1), pads)


def blur_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
    """Each axis doubled and smoothed by (1, 3, 3, 1) / 4: (B, H, W, C) -> (B, 2 H, 2 W, C)."""
    for axis in (1, 2):
        shape = (*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
        x = jnp.stack(_upsampled(x, axis), axis + 1).reshape(shape)
    return x


def blur_downsample(x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
    """Each axis smoothed by (1, 3, 3, 1) / 8 and halved: (B, H, W, C) -> (B, H / 2, W / 2, C); even sizes."""
    for axis in (1, 2):
        shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        even, odd = jnp.moveaxis(x.reshape(shape), axis + 1, 0)
        previous, following = _neighbours(odd, axis)[0], _neighbours(even, axis)[1]
        x = (previous + 3 * even + 3 * odd + following) / 8
    return x


def normalize_second_moment(x: Float[Array, "b d"], eps: float = 1e-8) -> Float[Array, "b d"]:
    """Rows of mean square 1: (B, D) -> (B, D)."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def _upsampled(x: Array, axis: int) -> tuple[Array, Array]:
    """The even and the odd elements of the doubled axis."""
    previous, following = _neighbours(x, axis)
    return (previous + 3 * x) / 4, (3 * x + following) / 4


def _neighbours(x: Array, axis: int) -> tuple[Array, Array]:
    """The elements before and after each element of an axis; zeros beyond the ends."""
    zero = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    n = x.shape[axis]
    previous = jnp.concatenate((zero, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)), axis)
    return previous, jnp.concatenate((jax.lax.slice_in_dim(x, 1, n, axis=axis), zero), axis)
