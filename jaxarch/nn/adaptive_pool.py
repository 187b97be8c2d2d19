"""Pooling to a given size, channels last; bins are torch's, the batch is optional."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxarch.errors import UsageError
from jaxarch.nn.module import Module
from jaxarch.nn.pool import first_max, spatial_indices
from jaxarch.nn.unbatched import unbatched

OutputSize = int | tuple[int | None, ...] | list[int | None] | None


class _Adaptive(Module):
    """Pooling by bins that begin at floor(i n / m) and end at ceil((i + 1) n / m)."""

    rank: ClassVar[int]
    output_size: tuple[int | None, ...]

    def _set(self, output_size: OutputSize) -> None:
        sizes = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * self.rank
        if len(sizes) != self.rank:
            raise UsageError(f"output_size {output_size} needs {self.rank} numbers")
        if any(n is not None and n < 1 for n in sizes):
            raise UsageError(f"output_size {output_size} must be positive")
        self.output_size = sizes


class _AdaptiveAvgPool(_Adaptive):
    """The mean of each bin."""

    def __init__(self, output_size: OutputSize):
        self._set(output_size)

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Float[Array, "*pooled c"]:
        return self._pool(input)

    def _pool(self, x: Array) -> Array:
        return adaptive_mean(x, self.output_size)


class _AdaptiveMaxPool(_Adaptive):
    """The maximum of each bin; torch's gradient goes to the first of equal values."""

    def __init__(self, output_size: OutputSize, return_indices: bool = False):
        self._set(output_size)
        self.return_indices = return_indices

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Any:
        return self._pool(input)

    def _pool(self, x: Array) -> Any:
        indices = jnp.broadcast_to(spatial_indices(x.shape), x.shape) if self.return_indices else None
        # A box is pooled along its last axis first, so that the first of equal maxima is torch's.
        for axis, size in reversed(list(enumerate(self.output_size, 1))):
            if size is None or size == x.shape[axis]:
                continue
            bins = _bins(x.shape[axis], size)
            if indices is None:
                parts = [first_max(lax.slice_in_dim(x, a, b, axis=axis), axis) for a, b in bins]
                x = jnp.stack(parts, axis) if size > 1 else jnp.expand_dims(parts[0], axis)
            else:
                x, indices = _maxima(x, indices, axis, bins)
        return x if indices is None else (x, indices)


def _bins(n: int, size: int) -> list[tuple[int, int]]:
    return [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]


def adaptive_mean(
    x: Float[Array, "b *space c"], output_size: Sequence[int | None]
) -> Float[Array, "b *pooled c"]:
    """The mean of each bin; None keeps an axis."""
    for axis, size in reversed(list(enumerate(output_size, 1))):
        if size is None or size == x.shape[axis]:
            continue
        parts = [lax.slice_in_dim(x, a, b, axis=axis) for a, b in _bins(x.shape[axis], size)]
        means = [part.mean(axis, keepdims=True) for part in parts]
        x = jnp.concatenate(means, axis) if size > 1 else means[0]
    return x


def _maxima(
    x: Float[Array, "b *shape c"], indices: Int[Array, "b *shape c"], axis: int, bins: list[tuple[int, int]]
) -> tuple[Float[Array, "b *pooled c"], Int[Array, "b *pooled c"]]:
    """The first maximum of each bin of one axis, and its index."""
    places = [a + jnp.argmax(lax.slice_in_dim(x, a, b, axis=axis), axis) for a, b in bins]
    place = jnp.stack(places, axis)
    return jnp.take_along_axis(x, place, axis), jnp.take_along_axis(indices, place, axis)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """torch.nn.AdaptiveAvgPool1d. (B, T, C) -> (B, output_size, C); None keeps an axis.

    Raises:
        UsageError: another number of sizes than axes, a size below 1.
        DataError: in the call, another number of axes.
    """

    rank = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """torch.nn.AdaptiveAvgPool2d. (B, H, W, C) -> (B, *output_size, C). See `AdaptiveAvgPool1d`."""

    rank = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """torch.nn.AdaptiveAvgPool3d. (B, D, H, W, C) -> (B, *output_size, C). See `AdaptiveAvgPool1d`."""

    rank = 3


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """torch.nn.AdaptiveMaxPool1d. (B, T, C) -> (B, output_size, C). See `AdaptiveAvgPool1d`.

    With `return_indices` also the indices of the maxima, which count as those of `MaxPool1d`.
    """

    rank = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """torch.nn.AdaptiveMaxPool2d. (B, H, W, C) -> (B, *output_size, C). See `AdaptiveMaxPool1d`."""

    rank = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    """torch.nn.AdaptiveMaxPool3d. (B, D, H, W, C) -> (B, *output_size, C). See `AdaptiveMaxPool1d`."""

    rank = 3
