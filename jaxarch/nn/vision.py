"""Blocks of efficient and attentive convolutional networks."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn import init
from jaxarch.nn.activation import Activation
from jaxarch.nn.adaptive_pool import AdaptiveAvgPool2d, AdaptiveMaxPool2d
from jaxarch.nn.containers import Sequential
from jaxarch.nn.conv import Conv2d, check_channels, check_groups
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.flatten import Flatten
from jaxarch.nn.kernels import convolution
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional
from jaxarch.nn.norm import BatchNorm2d
from jaxarch.nn.pool import first_max


def conv_norm_activation(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "relu",
    eps: float = 1e-5,
    momentum: float = 0.1,
    *,
    rngs: nnx.Rngs,
) -> Sequential:
    """torchvision's Conv2dNormActivation: a convolution that keeps the size but for its stride, batch norm,
    and an optional activation, with the names 0, 1 and 2."""
    layers: list[Module] = [
        Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            (kernel_size - 1) // 2,
            groups=groups,
            bias=False,
            rngs=rngs,
        ),
        BatchNorm2d(out_channels, eps, momentum, rngs=rngs),
    ]
    if activation is not None:
        layers.append(Activation(activation))
    return Sequential(*layers)


def make_divisible(value: float | int, divisor: int = 8) -> int:
    """The multiple of the divisor nearest to a number of channels, never under nine tenths of it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class StochasticDepth(Module):
    """Drop whole samples of a residual branch with probability p, and scale the rest by 1 / (1 - p).

    Huang et al. 2016, arXiv:1603.09382. Any shape with the batch first; in train mode only.
    """

    def __init__(self, p: float, *, rngs: nnx.Rngs):
        self.dropout = Dropout(p, rngs=rngs)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        ones = jnp.ones((x.shape[0], *(1,) * (x.ndim - 1)), x.dtype)
        return x * self.dropout(ones)


class SqueezeExcitation(Module):
    """Squeeze and excitation by 1x1 convolutions with biases, torchvision's (Hu et al. 2017, arXiv:1709.01507).

    (B, H, W, C) -> the same.
    """

    def __init__(
        self, input_channels: int, squeeze_channels: int, activation: str = "relu", *, rngs: nnx.Rngs
    ):
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc1 = Conv2d(input_channels, squeeze_channels, 1, rngs=rngs)
        self.fc2 = Conv2d(squeeze_channels, input_channels, 1, rngs=rngs)
        self.activation = Activation(activation)
        self.scale_activation = Activation("sigmoid")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return x * self.scale_activation(self.fc2(scale))


class DepthwiseSeparableConv(Module):
    """A 3x3 convolution of each channel, then a 1x1 convolution of all (Chollet 2016, arXiv:1610.02357).

    (B, H, W, in_ch) -> (B, H / stride, W / stride, out_ch).
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.depthwise = Conv2d(in_ch, in_ch, 3, stride, 1, groups=in_ch, rngs=rngs)
        self.pointwise = Conv2d(in_ch, out_ch, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v o"]:
        return self.pointwise(self.depthwise(x))


class AttentionConv(Module):
    """A 3x3 convolution scaled at each pixel by the sigmoid of a 1x1 convolution.

    (B, H, W, in_ch) -> (B, H / stride, W / stride, out_ch).
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.conv = Conv2d(in_ch, out_ch, 3, stride, 1, rngs=rngs)
        self.attention = Sequential(Conv2d(in_ch, 1, 1, stride, rngs=rngs), Activation("sigmoid"))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v o"]:
        return self.conv(x) * self.attention(x)


class SpatialAttention(Module):
    """Pixels scaled by a convolution of their channels' mean and maximum (Woo et al. 2018, arXiv:1807.06521).

    (B, H, W, C) -> the same.

    Raises:
        UsageError: an even kernel_size.
    """

    def __init__(self, kernel_size: int = 7, *, rngs: nnx.Rngs):
        if kernel_size % 2 == 0:
            raise UsageError(f"kernel_size {kernel_size} must be odd, so that the map keeps its size")
        self.conv = Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean, maximum = x.mean(-1, keepdims=True), first_max(x, -1)[..., None]
        return x * jax.nn.sigmoid(self.conv(jnp.concatenate([mean, maximum], -1)))


class ChannelAttention(Module):
    """Channels scaled by one MLP of their means and maxima (Woo et al. 2018, arXiv:1807.06521).

    (B, H, W, C) -> the same.

    Raises:
        UsageError: fewer channels than the reduction.
    """

    def __init__(self, channels: int, reduction: int = 16, *, rngs: nnx.Rngs):
        if channels < reduction:
            raise UsageError(f"channels {channels} must be at least the reduction {reduction}")
        self.mean = AdaptiveAvgPool2d(1)
        self.largest = AdaptiveMaxPool2d(1)
        self.flatten = Flatten()
        self.mlp = Sequential(
            Linear(channels, channels // reduction, rngs=rngs),
            Activation("relu"),
            Linear(channels // reduction, channels, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.mlp(self.flatten(self.mean(x))) + self.mlp(self.flatten(self.largest(x)))
        return x * jax.nn.sigmoid(scale)[:, None, None, :]


class CBAM(Module):
    """Attention over channels, then over pixels (Woo et al. 2018, arXiv:1807.06521).

    (B, H, W, C) -> the same. Errors: `ChannelAttention`, `SpatialAttention`.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7, *, rngs: nnx.Rngs):
        self.channel = ChannelAttention(channels, reduction, rngs=rngs)
        self.spatial = SpatialAttention(kernel_size, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.spatial(self.channel(x))


class DynamicConv2d(Module):
    """A convolution whose kernel is mixed from several, for each sample by an attention over them.

    Chen et al. 2019, arXiv:1912.03458. (B, H, W, in_channels) -> (B, H', W', out_channels). `temperature`
    flattens the softmax over the kernels; the paper lowers it from 30 to 1 in the first epochs, by the
    attribute of that name.

    Raises:
        UsageError: groups that do not divide the channels.
        DataError: in the call, another number of channels.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (0, 3, 4, 2, 1)}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
        bias: bool = True,
        kernels: int = 4,
        reduction: int = 4,
        temperature: float = 30.0,
        *,
        rngs: nnx.Rngs,
    ):
        check_groups(in_channels, out_channels, groups)
        hidden = max(in_channels // reduction, 1)
        self.stride, self.padding, self.groups = stride, padding, groups
        self.in_channels, self.temperature = in_channels, temperature
        shape = (kernels, out_channels, in_channels // groups, kernel_size, kernel_size)
        draw = init.uniform(1 / math.sqrt(math.prod(shape[2:])))
        self.weight = nnx.Param(from_torch_layout(draw(rngs.params(), shape), self.LAYOUT["weight"]))
        self.bias = optional(draw(rngs.params(), shape[:2]) if bias else None)
        self.avgpool = AdaptiveAvgPool2d(1)
        self.flatten = Flatten()
        self.attention = Sequential(
            Linear(in_channels, hidden, bias=False, rngs=rngs),
            Activation("relu"),
            Linear(hidden, kernels, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v o"]:
        check_channels(x, self.in_channels)
        scores = self.attention(self.flatten(self.avgpool(x)))
        mix = jax.nn.softmax(scores / self.temperature, -1)
        weight = jnp.einsum("bk,khwio->bhwio", mix, self.weight[...])

        def convolve(image: Array, kernel: Array) -> Array:
            pads = ((self.padding,) * 2,) * 2
            return convolution.convolve(image[None], kernel, (self.stride,) * 2, pads, groups=self.groups)[0]

        y = jax.vmap(convolve)(x, weight)
        return y if self.bias is None else y + (mix @ self.bias[...])[:, None, None, :]
