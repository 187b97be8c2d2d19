"""Pooling with torch's arguments, channels last: signals (B, T, C), images (B, H, W, C)."""

import math
from functools import partial, reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.conv import Size, per_axis
from jaxarch.nn.kernels.windows import TAPS, positions, span, window_slices
from jaxarch.nn.module import Module


class _WindowPool(Module):
    """The base class of pools by a window that slides over the spatial axes."""

    rank: ClassVar[int]

    def _set(
        self, kernel_size: Size, stride: Size | None, padding: Size, dilation: Size, ceil_mode: bool
    ) -> None:
        self.kernel_size = per_axis(kernel_size, self.rank, "kernel_size")
        self.stride = self.kernel_size if stride is None else per_axis(stride, self.rank, "stride")
        self.padding = per_axis(padding, self.rank, "padding")
        self.dilation = per_axis(dilation, self.rank, "dilation")
        self.ceil_mode = ceil_mode
        for p, k in zip(self.padding, self.kernel_size, strict=True):
            if 2 * p > k:
                raise UsageError(f"padding {p} must be at most half of kernel_size {k}")

    def _pads(self, x: Array) -> list[tuple[int, int]]:
        """(before, after) of each spatial axis; ceil_mode lets the last window reach over the end."""
        pads = []
        for n, k, s, p, d in zip(
            x.shape[1:-1], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
        ):
            if n + 2 * p < span(k, d):
                raise DataError(
                    f"an axis of {n} is smaller than the window of {span(k, d)} after padding {p}"
                )
            count = positions(n + 2 * p, k, s, d, self.ceil_mode)
            # A window must begin inside the input or its left padding.
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            pads.append((p, max((count - 1) * s + span(k, d) - n - p, 0)))
        return pads


def _maximum(a: Array, b: Array) -> Array:
    """The greater, a where they are equal; NaN where either is NaN."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)


class _MaxPool(_WindowPool):
    """The maximum of each window; torch's gradient goes to the first of equal values."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ):
        self._set(kernel_size, stride, padding, dilation, ceil_mode)

    def _pool(self, x: Array) -> Array:
        pads = self._pads(x)
        if max(self.dilation) > 1:
            return self._by_comparison(x, pads)
        if math.prod(self.kernel_size) > TAPS:
            return self._by_window(x, pads)
        # XLA's CPU backend takes ten times as long for the gradient of a window as for that of comparisons.
        return lax.platform_dependent(
            x, cpu=partial(self._by_comparison, pads=pads), default=partial(self._by_window, pads=pads)
        )

    def _by_comparison(self, x: Array, pads: list[tuple[int, int]]) -> Array:
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-math.inf)
        return reduce(_maximum, window_slices(x, self.kernel_size, self.stride, self.dilation))

    def _by_window(self, x: Array, pads: list[tuple[int, int]]) -> Array:
        # A constant, so that JAX sees a maximum, which it can differentiate.
        init = np.array(-math.inf, x.dtype)
        window, stride = (1, *self.kernel_size, 1), (1, *self.stride, 1)
        return lax.reduce_window(x, init, lax.max, window, stride, ((0, 0), *pads, (0, 0)))


class MaxPool1d(_MaxPool):
    """torch.nn.MaxPool1d. (B, T, C) -> (B, T', C)."""

    rank = 1

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u c"]:
        return self._pool(x)


class MaxPool2d(_MaxPool):
    """torch.nn.MaxPool2d. (B, H, W, C) -> (B, H', W', C)."""

    rank = 2

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
        return self._pool(x)


class _AvgPool(_WindowPool):
    """The mean of each window; `count_include_pad` counts padding zeros, but never what ceil_mode adds."""

    count_include_pad: bool
    divisor_override: int | None

    def _average(self, x: Array) -> Array:
        pads = self._pads(x)
        window, stride = (1, *self.kernel_size, 1), (1, *self.stride, 1)

        def total(values: Array, pads: list[tuple[int, int]]) -> Array:
            zero = np.zeros((), values.dtype)
            return lax.reduce_window(values, zero, lax.add, window, stride, ((0, 0), *pads, (0, 0)))

        sums = total(x, pads)
        if self.divisor_override is not None:
            return sums / self.divisor_override
        counted = [(0, 0)] * self.rank
        if self.count_include_pad:
            counted = [(p, min(p, after)) for p, (_, after) in zip(self.padding, pads, strict=True)]
        sizes = (n + a + b for n, (a, b) in zip(x.shape[1:-1], counted, strict=True))
        ones = jnp.ones((1, *sizes, 1), x.dtype)
        uncounted = [(a - c, b - d) for (a, b), (c, d) in zip(pads, counted, strict=True)]
        return sums / total(ones, uncounted)


class AvgPool1d(_AvgPool):
    """torch.nn.AvgPool1d. (B, T, C) -> (B, T', C)."""

    rank = 1

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        self._set(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad, self.divisor_override = count_include_pad, None

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u c"]:
        return self._average(x)


class AvgPool2d(_AvgPool):
    """torch.nn.AvgPool2d. (B, H, W, C) -> (B, H', W', C)."""

    rank = 2

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        self._set(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
        return self._average(x)


class _Adaptive(Module):
    """Pooling to a given size; bins begin at floor(i n / m) and end at ceil((i + 1) n / m), as torch's do."""

    rank: ClassVar[int]
    reduce: ClassVar[Any]  # (part, axis) -> the pooled part, its axis kept

    def __init__(self, output_size: int | tuple[int | None, ...] | None):
        sizes = output_size if isinstance(output_size, tuple) else (output_size,) * self.rank
        if len(sizes) != self.rank:
            raise UsageError(f"output_size {output_size} needs {self.rank} numbers")
        self.output_size = sizes

    def _pool(self, x: Array) -> Array:
        # A rectangle is pooled along its last axis first, so that the first of equal maxima is torch's.
        for axis, size in reversed(list(enumerate(self.output_size, 1))):
            n = x.shape[axis]
            if size is None or size == n:
                continue
            if size == 1:
                x = type(self).reduce(x, axis)
                continue
            bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
            parts = [type(self).reduce(lax.slice_in_dim(x, a, b, axis=axis), axis) for a, b in bins]
            x = jnp.concatenate(parts, axis)
        return x


class _AdaptiveAvgPool(_Adaptive):
    """The mean of each bin."""

    reduce = staticmethod(lambda part, axis: part.mean(axis, keepdims=True))


class _AdaptiveMaxPool(_Adaptive):
    """The maximum of each bin."""

    reduce = staticmethod(lambda part, axis: jnp.expand_dims(first_max(part, axis), axis))


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """torch.nn.AdaptiveAvgPool1d. (B, T, C) -> (B, output_size, C)."""

    rank = 1

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u c"]:
        return self._pool(x)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """torch.nn.AdaptiveAvgPool2d. (B, H, W, C) -> (B, *output_size, C); None keeps an axis."""

    rank = 2

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
        return self._pool(x)


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    """torch.nn.AdaptiveMaxPool1d. (B, T, C) -> (B, output_size, C)."""

    rank = 1

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u c"]:
        return self._pool(x)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    """torch.nn.AdaptiveMaxPool2d. (B, H, W, C) -> (B, *output_size, C); None keeps an axis."""

    rank = 2

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
        return self._pool(x)


class Flatten(Module):
    """(B, ...) -> (B, N) in torch's order: channels first."""

    def __call__(self, x: Float[Array, "b ..."]) -> Float[Array, "b n"]:
        # Globally pooled maps have only channels left, so nothing has to move.
        flat = math.prod(x.shape[1:-1]) == 1
        return (x if flat else jnp.moveaxis(x, -1, 1)).reshape(x.shape[0], -1)


def first_max(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*reduced"]:
    """The maximum along an axis; its gradient goes to the first of equal values, as torch's does."""
    index = jnp.expand_dims(jnp.argmax(jax.lax.stop_gradient(x), axis), axis)
    return jnp.take_along_axis(x, index, axis).squeeze(axis)
