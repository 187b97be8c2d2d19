"""Transposed convolutions with torch's arguments, channels last; the batch is optional."""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn import init
from jaxarch.nn.conv import Size, check_channels, check_groups, per_axis
from jaxarch.nn.kernels.convolution import DIMENSIONS
from jaxarch.nn.kernels.windows import span
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional
from jaxarch.nn.unbatched import unbatched


class _ConvTranspose(Module):
    """The gradient of a convolution; torch's weight is (in, out / groups, *kernel)."""

    rank: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        rngs: nnx.Rngs,
    ):
        if padding_mode != "zeros":
            raise UsageError(f"a transposed convolution has padding_mode 'zeros' alone, not {padding_mode!r}")
        check_groups(in_channels, out_channels, groups)
        self.in_channels, self.groups = in_channels, groups
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.stride = per_axis(stride, self.rank, "stride")
        self.padding = per_axis(padding, self.rank, "padding")
        self.output_padding = per_axis(output_padding, self.rank, "output_padding")
        self.dilation = per_axis(dilation, self.rank, "dilation")
        check_output_padding(self.output_padding, self.stride, self.dilation)
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight = init.torch_default(rngs.params(), shape)
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        self.bias = optional(init.uniform(bound)(rngs.params(), (out_channels,)) if bias else None)

    def _convolve(
        self, x: Float[Array, "b *space i"], output_size: Sequence[int] | None
    ) -> Float[Array, "b *positions o"]:
        check_channels(x, self.in_channels)
        extra = self.output_padding if output_size is None else tuple(self._extra(x, output_size))
        bias = None if self.bias is None else self.bias[...]
        return transposed_convolution(
            x, self.weight[...], bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    def _extra(self, x: Float[Array, "b *space i"], output_size: Sequence[int]) -> list[int]:
        """The output padding that leads to an output size: of the spatial axes, or a whole shape."""
        sizes = list(output_size if len(output_size) == self.rank else output_size[-self.rank - 1 : -1])
        if len(sizes) != self.rank or len(output_size) > self.rank + 2:
            raise UsageError(f"output_size {tuple(output_size)} needs {self.rank} numbers, or a whole shape")
        extras = []
        for size, n, k, s, p, d in zip(
            sizes, x.shape[1:-1], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        ):
            least = (n - 1) * s - 2 * p + span(k, d)
            if not least <= size < least + s:
                raise UsageError(f"output_size {size} of an axis of {n} must be in [{least}, {least + s})")
            extras.append(size - least)
        return extras


def check_output_padding(
    output_padding: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> None:
    """Raise a UsageError unless each axis has less output padding than stride or dilation."""
    for extra, s, d in zip(output_padding, stride, dilation, strict=True):
        if extra >= max(s, d):
            raise UsageError(f"output_padding {extra} must be smaller than stride {s} or dilation {d}")


def transposed_convolution(
    x: Float[Array, "b *space i"],
    weight: Float[Array, "*kernel i j"],
    bias: Float[Array, " o"] | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...],
) -> Float[Array, "b *positions o"]:
    """The gradient of a convolution by a weight (*kernel, in, out / groups).

    Raises:
        DataError: another number of channels.
    """
    *kernel, channels, group_out = weight.shape
    check_channels(x, channels)
    rank = len(kernel)
    # JAX wants (*kernel, in / groups, out), groups outermost in out.
    weight = jnp.flip(weight, tuple(range(rank)))
    weight = weight.reshape(*kernel, groups, channels // groups, group_out)
    weight = jnp.moveaxis(weight, rank, -2)
    weight = weight.reshape(*kernel, channels // groups, groups * group_out)
    before = [span(k, d) - 1 - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    y = jax.lax.conv_general_dilated(
        x,
        weight,
        (1,) * rank,
        [(b, b + extra) for b, extra in zip(before, output_padding, strict=True)],
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=DIMENSIONS[rank],
    )
    return y if bias is None else y + bias


class ConvTranspose1d(_ConvTranspose):
    """torch.nn.ConvTranspose1d. (B, T, in_channels) -> (B, T', out_channels).

    `output_size`, of the spatial axes or a whole shape, takes the place of `output_padding`.

    Raises:
        UsageError: groups that do not divide the channels, an output_padding or output_size that the stride cannot
            lead to, a padding_mode other than "zeros".
        DataError: in the call, another number of axes or channels.
    """

    rank = 1
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 0, 1)}

    @unbatched(2)
    def __call__(
        self, input: Float[Array, "*b t i"], output_size: Sequence[int] | None = None
    ) -> Float[Array, "*b u o"]:
        return self._convolve(input, output_size)


class ConvTranspose2d(_ConvTranspose):
    """torch.nn.ConvTranspose2d. (B, H, W, in_channels) -> (B, H', W', out_channels). See `ConvTranspose1d`."""

    rank = 2
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 0, 1)}

    @unbatched(3)
    def __call__(
        self, input: Float[Array, "*b h w i"], output_size: Sequence[int] | None = None
    ) -> Float[Array, "*b u v o"]:
        return self._convolve(input, output_size)


class ConvTranspose3d(_ConvTranspose):
    """torch.nn.ConvTranspose3d. (B, D, H, W, in_channels) -> (B, D', H', W', out_channels). See `ConvTranspose1d`."""

    rank = 3
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 4, 0, 1)}

    @unbatched(4)
    def __call__(
        self, input: Float[Array, "*b d h w i"], output_size: Sequence[int] | None = None
    ) -> Float[Array, "*b s u v o"]:
        return self._convolve(input, output_size)
