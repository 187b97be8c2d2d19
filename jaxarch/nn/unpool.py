"""The partial inverse of max pooling, channels last; the batch is optional."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.conv import Size, per_axis
from jaxarch.nn.embedding import check_ids
from jaxarch.nn.module import Module
from jaxarch.nn.unbatched import unbatched


class _MaxUnpool(Module):
    """Zeros, but for the maxima at their indices."""

    rank: ClassVar[int]

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0):
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.stride = self.kernel_size if stride is None else per_axis(stride, self.rank, "stride")
        self.padding = per_axis(padding, self.rank, "padding")

    @unbatched(lambda layer: layer.rank + 1, {"indices": 0})
    def __call__(
        self,
        input: Float[Array, "*shape c"],
        indices: Int[Array, "*shape c"],
        output_size: Sequence[int] | None = None,
    ) -> Float[Array, "*unpooled c"]:
        if indices.shape != input.shape:
            raise DataError(f"indices of shape {indices.shape} need the input's shape {input.shape}")
        space = self._space(input.shape[1:-1], output_size)
        check_ids(indices, math.prod(space), "index")
        return _scatter(input, indices, math.prod(space)).reshape(len(input), *space, input.shape[-1])

    def _space(self, sizes: tuple[int, ...], output_size: Sequence[int] | None) -> tuple[int, ...]:
        """The spatial axes of the output: as given, alone or in a whole shape, or the smallest that was pooled."""
        smallest = tuple(
            (n - 1) * s - 2 * p + k
            for n, s, p, k in zip(sizes, self.stride, self.padding, self.kernel_size, strict=True)
        )
        if output_size is None:
            return smallest
        space = tuple(output_size if len(output_size) == self.rank else output_size[-self.rank - 1 : -1])
        if len(space) != self.rank or len(output_size) > self.rank + 2:
            raise UsageError(f"output_size {tuple(output_size)} needs {self.rank} numbers, or a whole shape")
        for n, least, s in zip(space, smallest, self.stride, strict=True):
            if not least - s < n < least + s:
                raise UsageError(f"output_size {n} must be between {least - s} and {least + s}")
        return space


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _scatter(x: Float[Array, "b *space c"], indices: Int[Array, "b *space c"], size: int) -> Array:
    """(B, size, C) with x at its indices. Where two are equal the values must be; both get the whole gradient."""
    return _placed(x, indices, size, "set")


def _placed(x: Array, indices: Array, size: int, how: str) -> Array:
    rows, channels = (jnp.arange(n) for n in (x.shape[0], x.shape[-1]))
    flat, places = (v.reshape(len(v), -1, v.shape[-1]) for v in (x, indices))
    target = jnp.zeros((len(x), size, x.shape[-1]), x.dtype).at[rows[:, None, None], places, channels]
    return getattr(target, how)(flat)


@_scatter.defjvp
def _scatter_jvp(size: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, indices = primals
    return _scatter(x, indices, size), _placed(tangents[0], indices, size, "add")


class MaxUnpool1d(_MaxUnpool):
    """torch.nn.MaxUnpool1d. (B, T, C) and indices of that shape -> (B, T', C).

    `indices` count as those of `MaxPool1d`; `output_size` is that of the spatial axes, or a whole shape.

    Raises:
        UsageError: in the call, an output_size that the kernel and stride do not lead to.
        DataError: in the call, another number of axes, indices of another shape or out of range.
    """

    rank = 1


class MaxUnpool2d(_MaxUnpool):
    """torch.nn.MaxUnpool2d. (B, H, W, C) and indices -> (B, H', W', C). See `MaxUnpool1d`."""

    rank = 2


class MaxUnpool3d(_MaxUnpool):
    """torch.nn.MaxUnpool3d. (B, D, H, W, C) and indices -> (B, D', H', W', C). See `MaxUnpool1d`."""

    rank = 3
