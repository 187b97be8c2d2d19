"""Blocks of convolutional networks over images."""

from typing import Any

from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Dropout2d, Linear, Module, Sequential

from torchref.nn.activation import Activation, Function


class ConvBlock(Module):
    """Convolution, batch norm, activation, channel dropout: (B, C, H, W) -> (B, C', H', W').

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
    ):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm)
        self.batch_norm = BatchNorm2d(out_channels) if batch_norm else None
        self.activation = Activation(activation)
        self.dropout = Dropout2d(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.dropout(self.activation(x))


class ResidualBlock(Module):
    """Two 3x3 convolutions with batch norm and a shortcut: (B, C, H, W) -> (B, C', H / stride, W / stride).

    He et al. 2015, arXiv:1512.03385. The shortcut is a 1x1 convolution with batch norm where stride or
    channels change, or where `downsample` asks for it; a module given as `downsample` is the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        downsample: Module | bool | None = None,
        activation: str | Function = "relu",
    ):
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = BatchNorm2d(out_channels)
        self.activation = Activation(activation)
        differs = stride != 1 or in_channels != out_channels
        self.downsample: Any = None
        if isinstance(downsample, Module):
            self.downsample = downsample
        elif differs if downsample is None else downsample:
            self.downsample = Sequential(
                Conv2d(in_channels, out_channels, 1, stride, bias=False),
                BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.activation(y + (x if self.downsample is None else self.downsample(x)))


class SEBlock(Module):
    """Squeeze and excitation: channels scaled by a function of their means (Hu et al. 2017, arXiv:1709.01507).

    (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        if channels < reduction:
            raise ValueError(f"channels {channels} must be at least the reduction {reduction}")
        self.excitation = Sequential(
            Linear(channels, channels // reduction, bias=False),
            Activation("relu"),
            Linear(channels // reduction, channels, bias=False),
            Activation("sigmoid"),
        )

    def forward(self, x: Tensor) -> Tensor:
        scale = self.excitation(x.mean((2, 3)))
        return x * scale[:, :, None, None]
