"""Blocks of convolutional networks over sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Conv1d, Dropout, Module, ModuleList
from torch.nn.functional import pad

from torchref.nn.activation import Activation, Function


class Conv1DBlock(Module):
    """Convolution, batch norm, activation, dropout: (B, C, T) -> (B, C', T').

    `padding` is a number, "same" (stride 1 only) or "valid"; None keeps the length, divided by the stride. An input
    shorter than the kernel needs padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | Function = "relu",
        dropout: float = 0.1,
        batch_norm: bool = True,
    ):
        super().__init__()
        # torch warns of "same" where it pads one side more; padded by hand it is the same numbers.
        reach = dilation * (kernel_size - 1)
        if padding is None:
            padding = "same" if stride == 1 else reach // 2
        uneven = padding == "same" and stride == 1 and reach % 2 == 1
        self.pad = (reach // 2, reach - reach // 2) if uneven else (0, 0)
        self.conv = Conv1d(
            in_channels, out_channels, kernel_size, stride, 0 if uneven else padding, dilation, groups, bias
        )
        self.batch_norm = BatchNorm1d(out_channels) if batch_norm else None
        self.activation = Activation(activation)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(pad(x, self.pad))
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.dropout(self.activation(x))


class ParallelConv1d(Module):
    """Convolutions of several kernel sizes side by side: (B, C, T) -> (B, len(kernel_sizes) * C', T).

    Kim 2014, arXiv:1408.5882; padded to keep every length, also one shorter than a kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: Sequence[int],
        activation: str | Function = "relu",
        dropout: float = 0.1,
        batch_norm: bool = True,
    ):
        super().__init__()
        self.convs = ModuleList(
            Conv1DBlock(
                in_channels,
                out_channels,
                size,
                padding="same",
                activation=activation,
                dropout=dropout,
                batch_norm=batch_norm,
            )
            for size in kernel_sizes
        )
        self.out_channels = out_channels * len(self.convs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x) for conv in self.convs], 1)


class ResidualBlock1d(Module):
    """Two convolutions with batch norm, added to the input: (B, C, T) -> the same.

    He et al. 2015, arXiv:1512.03385, in one dimension, with dropout between the convolutions.
    """

    def __init__(self, channels: int, kernel_size: int = 3, dropout: float = 0.1):
        super().__init__()
        self.conv1 = Conv1DBlock(channels, channels, kernel_size, padding="same", bias=False, dropout=dropout)
        self.conv2 = Conv1DBlock(
            channels, channels, kernel_size, padding="same", bias=False, activation="identity", dropout=0.0
        )
        self.activation = Activation("relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.conv2(self.conv1(x)))
