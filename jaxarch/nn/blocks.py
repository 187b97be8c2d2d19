"""Blocks of convolutional networks over images."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn.activation import Activation, Function
from jaxarch.nn.containers import Sequential
from jaxarch.nn.conv import Conv2d
from jaxarch.nn.dropout import Dropout2d
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.norm import BatchNorm2d


class ConvBlock(Module):
    """Convolution, batch norm, activation, channel dropout: (B, H, W, C) -> (B, H', W', C').

    The convolution has a bias only without batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        activation: str | Function = "relu",
        batch_norm: bool = True,
        dropout_rate: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm, rngs=rngs
        )
        self.batch_norm = BatchNorm2d(out_channels, rngs=rngs) if batch_norm else nnx.data(None)
        self.activation = Activation(activation)
        self.dropout = Dropout2d(dropout_rate, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        x = self.conv(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.dropout(self.activation(x))


class ResidualBlock(Module):
    """Two 3x3 convolutions with batch norm and a shortcut: (B, H, W, C) -> (B, H / stride, W / stride, C').

    He et al. 2015, arXiv:1512.03385. The shortcut is a 1x1 convolution with batch norm where stride or
    channels change, or where `downsample` asks for it; a module given as `downsample` is the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        downsample: nnx.Module | bool | None = None,
        activation: str | Function = "relu",
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False, rngs=rngs)
        self.bn1 = BatchNorm2d(out_channels, rngs=rngs)
        self.conv2 = Conv2d(out_channels, out_channels, 3, 1, 1, bias=False, rngs=rngs)
        self.bn2 = BatchNorm2d(out_channels, rngs=rngs)
        self.activation = Activation(activation)
        differs = stride != 1 or in_channels != out_channels
        self.downsample: Any = nnx.data(None)
        if isinstance(downsample, nnx.Module):
            self.downsample = downsample
        elif differs if downsample is None else downsample:
            self.downsample = Sequential(
                Conv2d(in_channels, out_channels, 1, stride, bias=False, rngs=rngs),
                BatchNorm2d(out_channels, rngs=rngs),
            )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.activation(y + (x if self.downsample is None else self.downsample(x)))


class SEBlock(Module):
    """Squeeze and excitation: channels scaled by a function of their means (Hu et al. 2017, arXiv:1709.01507).

    (B, H, W, C) -> the same.

    Raises:
        UsageError: fewer channels than the reduction.
    """

    def __init__(self, channels: int, reduction: int = 16, *, rngs: nnx.Rngs):
        if channels < reduction:
            raise UsageError(f"channels {channels} must be at least the reduction {reduction}")
        self.excitation = Sequential(
            Linear(channels, channels // reduction, bias=False, rngs=rngs),
            Activation("relu"),
            Linear(channels // reduction, channels, bias=False, rngs=rngs),
            Activation("sigmoid"),
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        scale = self.excitation(x.mean((1, 2)))
        return x * scale[:, None, None, :]
