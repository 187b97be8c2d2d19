"""Windows that slide over the spatial axes of channels-last arrays: their sizes, positions and slices."""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from jax import lax
from jaxtyping import Array, Shaped

Axes = tuple[int, ...]
TAPS = 64  # of a depthwise kernel or a pooling window: each is a term for the compiler


class Window(NamedTuple):
    """How a kernel moves over an image: an int, or a pair (before, after), for every spatial axis."""

    stride: Axes
    padding: tuple[tuple[int, int], ...]
    dilation: Axes
    groups: int

    def is_pointwise(self, kernel: Axes) -> bool:
        """Whether a kernel of this shape, (K, L, I / groups, O), is a matrix product at every pixel."""
        return self.groups == 1 and kernel[:2] == (1, 1) and not any(map(sum, self.padding))

    def is_depthwise(self, kernel: Axes) -> bool:
        """Whether a kernel of this shape convolves each channel by itself, with few enough taps to unroll."""
        return self.groups > 1 and kernel[2:] == (1, self.groups) and kernel[0] * kernel[1] <= TAPS

    def taps(self, kernel: Axes) -> Iterator[tuple[Axes, Axes, Axes]]:
        """Every tap of a kernel: its index, and its offset in whole strides and in the steps that remain."""
        for index in product(range(kernel[0]), range(kernel[1])):
            steps = [divmod(i * d, s) for i, d, s in zip(index, self.dilation, self.stride, strict=True)]
            strides, remainder = zip(*steps, strict=True)
            yield index, strides, remainder


def span(kernel: int, dilation: int) -> int:
    """The length that a dilated kernel covers on one axis."""
    return dilation * (kernel - 1) + 1


def positions(size: int, kernel: int, stride: int, dilation: int, ceil: bool = False) -> int:
    """How many positions a window takes on a padded axis; `ceil` counts one that reaches over the end."""
    room = size - span(kernel, dilation)
    return (-(-room // stride) if ceil else room // stride) + 1


def window_slices(
    x: Shaped[Array, "b *space c"], kernel: Axes, stride: Axes, dilation: Axes
) -> list[Shaped[Array, "b *positions c"]]:
    """For each tap of a window the elements of a padded x under it at every position: strided slices."""
    counts = [positions(*axis) for axis in zip(x.shape[1:-1], kernel, stride, dilation, strict=True)]
    slices = []
    for tap in product(*map(range, kernel)):
        start = [i * d for i, d in zip(tap, dilation, strict=True)]
        limit = [a + (c - 1) * s + 1 for a, c, s in zip(start, counts, stride, strict=True)]
        slices.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *stride, 1)))
    return slices
