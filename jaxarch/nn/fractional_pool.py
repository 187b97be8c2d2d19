"""Max pooling with windows at pseudo-random steps (Graham 2014, arXiv:1412.6071), channels last.

The batch is optional.
"""

import itertools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.conv import Size, per_axis
from jaxarch.nn.init import float_dtype
from jaxarch.nn.module import Buffer, Module
from jaxarch.nn.unbatched import unbatched


class _FractionalMaxPool(Module):
    """The maxima of windows whose steps sum up to the input's size."""

    rank: ClassVar[int]
    # Which of the random samples is of which spatial axis.
    order: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        kernel_size: Size,
        output_size: Size | None = None,
        output_ratio: float | tuple[float, ...] | None = None,
        return_indices: bool = False,
        _random_samples: Float[Array, "b c rank"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ):
        if (output_size is None) == (output_ratio is None):
            raise UsageError("a fractional max pool needs output_size or output_ratio, and not both")
        if _random_samples is None and rngs is None:
            raise UsageError("a fractional max pool draws its windows: give it rngs, or _random_samples")
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.output_size = None if output_size is None else per_axis(output_size, self.rank, "output_size")
        self.output_ratio = _ratios(output_ratio, self.rank)
        self.return_indices = return_indices
        self._random_samples: Any = nnx.data(None if _random_samples is None else Buffer(_random_samples))
        self.rngs: Any = nnx.data(None if rngs is None else rngs.dropout.fork())

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Any:
        space = input.shape[1:-1]
        sizes = self.output_size or tuple(int(n * r) for n, r in zip(space, self.output_ratio, strict=True))
        for n, size, k in zip(space, sizes, self.kernel_size, strict=True):
            if not 1 <= size <= n - k + 1:
                raise DataError(f"an axis of {n} with windows of {k} cannot be pooled to {size}")
        samples = self._samples(len(input), input.shape[-1])
        starts = [
            _starts(samples[..., i], n, size, k)
            for i, n, size, k in zip(self.order, space, sizes, self.kernel_size, strict=True)
        ]
        y, indices = _maxima(input, starts, self.kernel_size)
        return (y, indices) if self.return_indices else y

    def _samples(self, batch: int, channels: int) -> Float[Array, "b c rank"]:
        shape = (batch, channels, self.rank)
        if self._random_samples is None:
            return jax.random.uniform(self.rngs(), shape, float_dtype())
        samples = self._random_samples[...]
        if len(samples) < batch or samples.shape[1:] != shape[1:]:
            raise DataError(f"_random_samples of shape {samples.shape} must be {shape}")
        return samples[:batch]


def _ratios(output_ratio: float | tuple[float, ...] | None, rank: int) -> tuple[float, ...]:
    """The ratio of each axis; none where a size is given."""
    if output_ratio is None:
        return ()
    ratios = output_ratio if isinstance(output_ratio, tuple) else (output_ratio,) * rank
    if len(ratios) != rank or not all(0 < r < 1 for r in ratios):
        raise UsageError(f"output_ratio {output_ratio} must be between 0 and 1, {rank} of them or one")
    return ratios


def _starts(sample: Float[Array, "b c"], n: int, size: int, kernel: int) -> Int[Array, "b size c"]:
    """The first element of each of `size` windows on an axis of n, torch's sequence from a number in [0, 1)."""
    last = jnp.full((len(sample), 1, sample.shape[1]), n - kernel)
    if size == 1:
        return last
    sample = sample[:, None]
    alpha = jnp.asarray((n - kernel) / (size - 1), sample.dtype)
    i = jnp.arange(size - 1).astype(sample.dtype)[None, :, None]
    inner = ((i + sample) * alpha).astype(int) - (sample * alpha).astype(int)
    return jnp.concatenate([inner, last], 1)


def _maxima(
    x: Float[Array, "b *space c"], starts: list[Int[Array, "b _ c"]], kernel: tuple[int, ...]
) -> tuple[Float[Array, "b *pooled c"], Int[Array, "b *pooled c"]]:
    """The maximum of each window, and its index, which counts as those of `MaxPool1d`."""
    space, rank, taps = x.shape[1:-1], len(kernel), []
    for offsets in itertools.product(*map(range, kernel)):
        index: Array = jnp.zeros((), int)
        for axis, (start, offset) in enumerate(zip(starts, offsets, strict=True)):
            along = [1] * rank
            along[axis] = start.shape[1]
            step = (start + offset).reshape(len(x), *along, x.shape[-1])
            index = index * space[axis] + step
        taps.append(index)
    indices = jnp.stack(taps, 1)
    flat = x.reshape(len(x), math.prod(space), x.shape[-1])
    values = jnp.take_along_axis(flat, indices.reshape(len(x), -1, x.shape[-1]), 1).reshape(indices.shape)
    best = jnp.argmax(jax.lax.stop_gradient(values), 1)[:, None]
    return tuple(jnp.take_along_axis(v, best, 1)[:, 0] for v in (values, indices))  # type: ignore[return-value]


class FractionalMaxPool2d(_FractionalMaxPool):
    """torch.nn.FractionalMaxPool2d. (B, H, W, C) -> (B, *output_size, C), the size given or a ratio of the input's.

    Windows are drawn anew in every call, or made of `_random_samples` (B, C, 2) in [0, 1), for W and H. With
    `return_indices` also the indices of the maxima, which count as those of `MaxPool2d`.

    Raises:
        UsageError: both or none of output_size and output_ratio, a ratio outside (0, 1), nothing to draw from.
        DataError: in the call, another number of axes, an axis too small, samples of another shape.
    """

    rank, order = 2, (1, 0)


class FractionalMaxPool3d(_FractionalMaxPool):
    """torch.nn.FractionalMaxPool3d. (B, D, H, W, C) -> (B, *output_size, C). See `FractionalMaxPool2d`.

    `_random_samples` are (B, C, 3), for D, H and W.
    """

    rank, order = 3, (0, 1, 2)
