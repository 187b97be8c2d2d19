"""Layers of StyleGAN2 under its authors' names (Karras et al. 2020, arXiv:1912.04958)."""

import math

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn import functional as F

SLOPE, GAIN = 0.2, math.sqrt(2)


class ConstantMap(Module):
    """A learned image, repeated for every sample: a batch size -> (B, channels, size, size)."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = Parameter(torch.randn(channels, size, size))

    def forward(self, batch: int) -> Tensor:
        return self.weight.expand(batch, -1, -1, -1)


class EqualizedLinear(Module):
    """Linear whose weight is scaled at run time: (..., in_features) -> (..., out_features).

    The stored weight is N(0, 1) / lr_multiplier; `leak` ends in a leaky ReLU of gain sqrt(2).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        lr_multiplier: float = 1.0,
        leak: bool = False,
    ):
        super().__init__()
        self.weight = Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.scale, self.lr_multiplier, self.leak = (
            lr_multiplier / math.sqrt(in_features),
            lr_multiplier,
            leak,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x @ (self.weight * self.scale).T + self.bias * self.lr_multiplier
        return leaky(y) if self.leak else y


class EqualizedConv2d(Module):
    """Convolution that keeps the size, its weight scaled at run time: (B, C, H, W) -> (B, C', H, W).

    With `down` the image is blurred and halved first; with `leak` a leaky ReLU of gain sqrt(2) ends it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        down: bool = False,
        leak: bool = False,
    ):
        super().__init__()
        self.weight = Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = Parameter(torch.zeros(out_channels)) if bias else None
        self.scale, self.pad = 1 / math.sqrt(in_channels * kernel_size**2), kernel_size // 2
        self.down, self.leak = down, leak

    def forward(self, x: Tensor) -> Tensor:
        x = blur_downsample(x) if self.down else x
        y = F.conv2d(x, self.weight * self.scale, self.bias, padding=self.pad)
        return leaky(y) if self.leak else y


class ModulatedConv2d(Module):
    """A layer of the synthesis network: x (B, C, H, W), w (B, w_dim), noise (B, H', W') -> (B, C', H', W').

    The style of w scales the input channels; with `demodulate` each output map is divided by the norm of the
    weights it came from. With `up` the image is upsampled by 2 and blurred first. Then noise times `noise_strength`,
    the bias and a leaky ReLU; a layer without demodulation (to RGB) has only the bias, and a smaller style.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 3,
        up: bool = False,
        demodulate: bool = True,
        eps: float = 1e-8,
    ):
        super().__init__()
        self.affine = EqualizedLinear(w_dim, in_channels, 1.0)
        self.weight = Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = Parameter(torch.zeros(out_channels))
        self.noise_strength = Parameter(torch.zeros(())) if demodulate else None
        self.gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.up, self.demodulate, self.eps, self.pad = up, demodulate, eps, kernel_size // 2

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        style, weight = self.affine(w), self.weight
        if not self.demodulate:
            style = style * self.gain
        x = blur_upsample(x) if self.up else x
        y = F.conv2d(x * style[:, :, None, None], weight, padding=self.pad)
        if self.demodulate:
            norms = style.square() @ weight.square().sum((2, 3)).T
            y = y * (norms + self.eps).rsqrt()[:, :, None, None]
        if self.noise_strength is not None and noise is not None:
            y = y + noise[:, None] * self.noise_strength
        y = y + self.bias[:, None, None]
        return leaky(y) if self.demodulate else y


class MinibatchStd(Module):
    """Appends one map, the standard deviation among images: (B, C, H, W) -> (B, C + 1, H, W).

    Its value is the mean over channels and pixels of the standard deviation within groups of `group_size`
    images; the groups interleave. A group that does not divide the batch is a ValueError.
    """

    def __init__(self, group_size: int = 4):
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        group = min(self.group_size, len(x))
        if len(x) % group:
            raise ValueError(f"a batch of {len(x)} does not divide into groups of {group}")
        grouped = x.reshape(group, -1, *x.shape[1:])
        variance = (grouped - grouped.mean(0)).square().mean(0)
        deviation = (variance + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
        return torch.cat((x, deviation[:, None, None, None].expand(-1, 1, *x.shape[2:])), 1)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, scaled to keep the variance."""
    return F.leaky_relu(x, SLOPE) * GAIN


def blur_upsample(x: Tensor) -> Tensor:
    """Each axis doubled and smoothed by (1, 3, 3, 1) / 4: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
    for axis in (2, 3):
        x = torch.stack(_upsampled(x, axis), axis + 1).flatten(axis, axis + 1)
    return x


def blur_downsample(x: Tensor) -> Tensor:
    """Each axis smoothed by (1, 3, 3, 1) / 8 and halved: (B, C, H, W) -> (B, C, H / 2, W / 2); even sizes."""
    for axis in (2, 3):
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        previous, following = _neighbours(odd, axis)[0], _neighbours(even, axis)[1]
        x = (previous + 3 * even + 3 * odd + following) / 8
    return x


def normalize_second_moment(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Rows of mean square 1: (B, D) -> (B, D)."""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def _upsampled(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The even and the odd elements of the doubled axis."""
    previous, following = _neighbours(x, axis)
    return (previous + 3 * x) / 4, (3 * x + following) / 4


def _neighbours(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The elements before and after each element of an axis; zeros beyond the ends."""
    zero = torch.zeros_like(x.narrow(axis, 0, 1))
    n = x.shape[axis] - 1
    previous = torch.cat((zero, x.narrow(axis, 0, n)), axis)
    return previous, torch.cat((x.narrow(axis, 1, n), zero), axis)
