"""Convolutions with torch's arguments, channels last: signals (B, T, C), images (B, H, W, C), volumes (B, D, H, W, C).

The batch is optional.
"""

import math
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.kernels.convolution import convolve
from jaxarch.nn.kernels.windows import span
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional
from jaxarch.nn.padding import pad
from jaxarch.nn.unbatched import unbatched

Size = int | tuple[int, ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def per_axis(value: Size, rank: int, what: str) -> tuple[int, ...]:
    """An int repeated for every spatial axis, or the given tuple.

    Raises:
        UsageError: the tuple has another length than there are axes.
    """
    sizes = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(sizes) != rank:
        raise UsageError(f"{what} {value} needs {rank} numbers")
    return sizes


def ends_of(
    padding: Size | str, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """(before, after) of each axis. torch pads both sides alike, but for "same" of an even kernel.

    Raises:
        UsageError: an unknown padding, another number of numbers than axes, "same" with a stride.
    """
    if padding == "valid":
        return ((0, 0),) * len(kernel_size)
    if padding == "same":
        if max(stride) > 1:
            raise UsageError("padding 'same' needs stride 1, as in torch: give the padding as a number")
        totals = [span(k, d) - 1 for k, d in zip(kernel_size, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) for t in totals)
    if isinstance(padding, str):
        raise UsageError(f"padding must be a number, 'same' or 'valid', not {padding!r}")
    return tuple((p, p) for p in per_axis(padding, len(kernel_size), "padding"))


def convolution(
    x: Float[Array, "b *space i"],
    weight: Float[Array, "*kernel j o"],
    bias: Float[Array, " o"] | None,
    stride: tuple[int, ...],
    ends: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Float[Array, "b *positions o"]:
    """The convolution of x, zeros before and after each axis, by a weight (*kernel, in / groups, out).

    Raises:
        DataError: another number of channels, or a padded axis smaller than the kernel.
    """
    check_channels(x, weight.shape[-2] * groups)
    for n, k, d, pads in zip(x.shape[1:], weight.shape, dilation, ends, strict=False):
        if n + sum(pads) < span(k, d):
            raise DataError(
                f"an axis of {n} padded to {n + sum(pads)} is smaller than the kernel's {span(k, d)}"
            )
    y = convolve(x, weight, stride, ends, dilation, groups)
    return y if bias is None else y + bias


class _Conv(Module):
    """The base class of convolutions of every rank; the weight is stored (*kernel, in / groups, out)."""

    rank: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rngs: nnx.Rngs,
    ):
        if padding_mode not in PADDING_MODES:
            raise unknown("padding_mode", padding_mode, PADDING_MODES)
        check_groups(in_channels, out_channels, groups)
        self.in_channels, self.groups = in_channels, groups
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.stride = per_axis(stride, self.rank, "stride")
        self.dilation = per_axis(dilation, self.rank, "dilation")
        self.padding = ends_of(padding, self.kernel_size, self.stride, self.dilation)
        self.padding_mode = padding_mode
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weight = init.torch_default(rngs.params(), shape)
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        self.bias = optional(init.uniform(bound)(rngs.params(), (out_channels,)) if bias else None)

    def _convolve(self, x: Float[Array, "b *space i"]) -> Float[Array, "b *positions o"]:
        check_channels(x, self.in_channels)
        pads = self.padding
        if self.padding_mode != "zeros":
            x, pads = pad(x, pads, self.padding_mode), ((0, 0),) * self.rank
        bias = None if self.bias is None else self.bias[...]
        return convolution(x, self.weight[...], bias, self.stride, pads, self.dilation, self.groups)


class Conv1d(_Conv):
    """torch.nn.Conv1d. (B, T, in_channels) -> (B, T', out_channels).

    Raises:
        UsageError: groups that do not divide the channels, an unknown padding or padding_mode.
        DataError: in the call, another number of axes or channels, or a padded input smaller than the kernel.
    """

    rank = 1
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 1, 0)}

    @unbatched(2)
    def __call__(self, input: Float[Array, "*b t i"]) -> Float[Array, "*b u o"]:
        return self._convolve(input)


class Conv2d(_Conv):
    """torch.nn.Conv2d. (B, H, W, in_channels) -> (B, H', W', out_channels). Errors: `Conv1d`."""

    rank = 2
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 1, 0)}

    @unbatched(3)
    def __call__(self, input: Float[Array, "*b h w i"]) -> Float[Array, "*b u v o"]:
        return self._convolve(input)


class Conv3d(_Conv):
    """torch.nn.Conv3d. (B, D, H, W, in_channels) -> (B, D', H', W', out_channels). Errors: `Conv1d`."""

    rank = 3
    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (2, 3, 4, 1, 0)}

    @unbatched(4)
    def __call__(self, input: Float[Array, "*b d h w i"]) -> Float[Array, "*b s u v o"]:
        return self._convolve(input)


def check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    """Raise a UsageError unless the groups divide both channel counts."""
    if in_channels % groups or out_channels % groups:
        raise UsageError(
            f"groups {groups} must divide in_channels {in_channels} and out_channels {out_channels}"
        )


def check_channels(x: Float[Array, "*batch c"], channels: int) -> None:
    """Raise a DataError unless the last axis holds the channels."""
    if x.shape[-1] != channels:
        raise DataError(f"x of shape {x.shape} has {x.shape[-1]} channels last, the layer needs {channels}")
