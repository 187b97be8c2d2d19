"""Blocks of efficient and attentive convolutional networks."""

import math

import torch
from torch import Tensor
from torch.nn import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    Module,
    Parameter,
    Sequential,
    init,
)
from torch.nn import functional as F

from torchref.nn.activation import Activation


def conv_norm_activation(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "relu",
    eps: float = 1e-5,
    momentum: float = 0.1,
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
        ),
        BatchNorm2d(out_channels, eps, momentum),
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

    def __init__(self, p: float):
        super().__init__()
        self.dropout = Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones((x.shape[0], *(1,) * (x.ndim - 1)), dtype=x.dtype, device=x.device)
        return x * self.dropout(ones)


class SqueezeExcitation(Module):
    """Squeeze and excitation by 1x1 convolutions with biases, torchvision's (Hu et al. 2017, arXiv:1709.01507).

    (B, C, H, W) -> the same.
    """

    def __init__(self, input_channels: int, squeeze_channels: int, activation: str = "relu"):
        super().__init__()
        self.avgpool = AdaptiveAvgPool2d(1)
        self.fc1 = Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = Conv2d(squeeze_channels, input_channels, 1)
        self.activation = Activation(activation)
        self.scale_activation = Activation("sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return x * self.scale_activation(self.fc2(scale))


class DepthwiseSeparableConv(Module):
    """A 3x3 convolution of each channel, then a 1x1 convolution of all (Chollet 2016, arXiv:1610.02357).

    (B, in_ch, H, W) -> (B, out_ch, H / stride, W / stride).
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1):
        super().__init__()
        self.depthwise = Conv2d(in_ch, in_ch, 3, stride, 1, groups=in_ch)
        self.pointwise = Conv2d(in_ch, out_ch, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class AttentionConv(Module):
    """A 3x3 convolution scaled at each pixel by the sigmoid of a 1x1 convolution.

    (B, in_ch, H, W) -> (B, out_ch, H / stride, W / stride).
    """

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1):
        super().__init__()
        self.conv = Conv2d(in_ch, out_ch, 3, stride, 1)
        self.attention = Sequential(Conv2d(in_ch, 1, 1, stride), Activation("sigmoid"))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.attention(x)


class SpatialAttention(Module):
    """Pixels scaled by a convolution of their channels' mean and maximum (Woo et al. 2018, arXiv:1807.06521).

    (B, C, H, W) -> the same.
    """

    def __init__(self, kernel_size: int = 7):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd, so that the map keeps its size")
        self.conv = Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, maximum = x.mean(1, keepdim=True), x.max(1, keepdim=True).values
        return x * self.conv(torch.cat([mean, maximum], 1)).sigmoid()


class ChannelAttention(Module):
    """Channels scaled by one MLP of their means and maxima (Woo et al. 2018, arXiv:1807.06521).

    (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if channels < reduction:
            raise ValueError(f"channels {channels} must be at least the reduction {reduction}")
        self.mean = AdaptiveAvgPool2d(1)
        self.largest = AdaptiveMaxPool2d(1)
        self.flatten = Flatten()
        self.mlp = Sequential(
            Linear(channels, channels // reduction),
            Activation("relu"),
            Linear(channels // reduction, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        scale = self.mlp(self.flatten(self.mean(x))) + self.mlp(self.flatten(self.largest(x)))
        return x * scale.sigmoid()[:, :, None, None]


class CBAM(Module):
    """Attention over channels, then over pixels (Woo et al. 2018, arXiv:1807.06521).

    (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, reduction: int = 16, kernel_size: int = 7):
        super().__init__()
        self.channel = ChannelAttention(channels, reduction)
        self.spatial = SpatialAttention(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.spatial(self.channel(x))


class DynamicConv2d(Module):
    """A convolution whose kernel is mixed from several, for each sample by an attention over them.

    Chen et al. 2019, arXiv:1912.03458. (B, in_channels, H, W) -> (B, out_channels, H', W'). `temperature`
    flattens the softmax over the kernels; the paper lowers it from 30 to 1 in the first epochs, by the
    attribute of that name.
    """

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
    ):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups {groups} must divide {in_channels} and {out_channels} channels")
        hidden = max(in_channels // reduction, 1)
        self.stride, self.padding, self.groups = stride, padding, groups
        self.temperature = temperature
        shape = (kernels, out_channels, in_channels // groups, kernel_size, kernel_size)
        bound = 1 / math.sqrt(math.prod(shape[2:]))
        self.weight = Parameter(init.uniform_(torch.empty(shape), -bound, bound))
        self.bias = Parameter(init.uniform_(torch.empty(shape[:2]), -bound, bound)) if bias else None
        self.avgpool = AdaptiveAvgPool2d(1)
        self.flatten = Flatten()
        self.attention = Sequential(
            Linear(in_channels, hidden, bias=False),
            Activation("relu"),
            Linear(hidden, kernels),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = self.attention(self.flatten(self.avgpool(x)))
        mix = (scores / self.temperature).softmax(-1)
        weight = torch.einsum("bk,koihw->boihw", mix, self.weight)
        # One group for each sample: every sample has a kernel of its own.
        batch = x.shape[0]
        y = F.conv2d(
            x.flatten(0, 1)[None],
            weight.flatten(0, 1),
            stride=self.stride,
            padding=self.padding,
            groups=batch * self.groups,
        )
        y = y.unflatten(1, (batch, -1))[0]
        return y if self.bias is None else y + (mix @ self.bias)[:, :, None, None]
