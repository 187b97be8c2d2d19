"""Blocks of convolutional networks over sequences."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.activation import Activation, Function
from jaxarch.nn.containers import ModuleList
from jaxarch.nn.conv import Conv1d
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels.windows import span
from jaxarch.nn.module import Module
from jaxarch.nn.norm import BatchNorm1d


class Conv1DBlock(Module):
    """Convolution, batch norm, activation, dropout: (B, T, C) -> (B, T', C').

    `padding` is a number, "same" (stride 1 only) or "valid"; None keeps the length, divided by the stride. An input
    shorter than the kernel needs padding.

    Raises:
        UsageError: groups that do not divide the channels, an unknown padding, "same" with a stride.
        DataError: in the call, another number of channels, or fewer padded steps than the kernel spans.
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
        *,
        rngs: nnx.Rngs,
    ):
        if padding is None:
            padding = "same" if stride == 1 else dilation * (kernel_size - 1) // 2
        self.conv = Conv1d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, rngs=rngs
        )
        self.span = span(kernel_size, dilation)
        self.batch_norm = BatchNorm1d(out_channels, rngs=rngs) if batch_norm else nnx.data(None)
        self.activation = Activation(activation)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        steps = x.shape[1] + sum(self.conv.padding[0])
        if steps < self.span:
            raise DataError(f"{steps} padded steps are fewer than the {self.span} that the kernel spans")
        x = self.conv(x)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        return self.dropout(self.activation(x))


class ParallelConv1d(Module):
    """Convolutions of several kernel sizes side by side: (B, T, C) -> (B, T, len(kernel_sizes) * C').

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
        *,
        rngs: nnx.Rngs,
    ):
        self.convs = ModuleList(
            Conv1DBlock(
                in_channels,
                out_channels,
                size,
                padding="same",
                activation=activation,
                dropout=dropout,
                batch_norm=batch_norm,
                rngs=rngs,
            )
            for size in kernel_sizes
        )
        self.out_channels = out_channels * len(self.convs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t d"]:
        return jnp.concatenate([conv(x) for conv in self.convs], -1)


class ResidualBlock1d(Module):
    """Two convolutions with batch norm, added to the input: (B, T, C) -> the same.

    He et al. 2015, arXiv:1512.03385, in one dimension, with dropout between the convolutions.
    """

    def __init__(self, channels: int, kernel_size: int = 3, dropout: float = 0.1, *, rngs: nnx.Rngs):
        self.conv1 = Conv1DBlock(
            channels, channels, kernel_size, padding="same", bias=False, dropout=dropout, rngs=rngs
        )
        self.conv2 = Conv1DBlock(
            channels,
            channels,
            kernel_size,
            padding="same",
            bias=False,
            activation="identity",
            dropout=0.0,
            rngs=rngs,
        )
        self.activation = Activation("relu")

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        return self.activation(x + self.conv2(self.conv1(x)))
