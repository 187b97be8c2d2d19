"""Pooling by windows with torch's arguments, channels last: (B, T, C), (B, H, W, C) and (B, D, H, W, C).

The batch is optional. An index counts the elements of one channel of the input as torch does: w of a signal,
h * W + w of an image, (d * H + h) * W + w of a volume.
"""

import math
from functools import partial, reduce
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.conv import Size, per_axis
from jaxarch.nn.kernels.windows import TAPS, positions, span, window_slices
from jaxarch.nn.module import Module
from jaxarch.nn.unbatched import unbatched


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
        return_indices: bool = False,
        ceil_mode: bool = False,
    ):
        self._set(kernel_size, stride, padding, dilation, ceil_mode)
        self.return_indices = return_indices

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Any:
        return self._with_indices(input) if self.return_indices else self._pool(input)

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

    def _with_indices(self, x: Array) -> tuple[Array, Array]:
        """The maxima and their indices; padding has index -1, which no window has alone."""
        ends = [(0, 0), *self._pads(x), (0, 0)]
        slices = partial(window_slices, kernel=self.kernel_size, stride=self.stride, dilation=self.dilation)
        values = slices(jnp.pad(x, ends, constant_values=-math.inf))
        indices = slices(jnp.pad(spatial_indices(x.shape), ends, constant_values=-1))

        def greater(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
            takes_b = ((b[0] > a[0]) | jnp.isnan(b[0]) | (a[1] < 0)) & (b[1] >= 0)
            return jnp.where(takes_b, b[0], a[0]), jnp.where(takes_b, b[1], a[1])

        first = values[0], jnp.broadcast_to(indices[0], values[0].shape)
        return reduce(greater, zip(values[1:], indices[1:], strict=True), first)


class MaxPool1d(_MaxPool):
    """torch.nn.MaxPool1d. (B, T, C) -> (B, T', C); with `return_indices` also their indices.

    Raises:
        UsageError: padding over half of kernel_size.
        DataError: in the call, another number of axes, or an axis smaller than the window.
    """

    rank = 1


class MaxPool2d(_MaxPool):
    """torch.nn.MaxPool2d. (B, H, W, C) -> (B, H', W', C). See `MaxPool1d`."""

    rank = 2


class MaxPool3d(_MaxPool):
    """torch.nn.MaxPool3d. (B, D, H, W, C) -> (B, D', H', W', C). See `MaxPool1d`."""

    rank = 3


class _AvgPool(_WindowPool):
    """The mean of each window; `count_include_pad` counts padding zeros, but never what ceil_mode adds."""

    count_include_pad: bool
    divisor_override: int | None

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Float[Array, "*pooled c"]:
        return self._pool(input)

    def _pool(self, x: Array) -> Array:
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
    """torch.nn.AvgPool1d. (B, T, C) -> (B, T', C). Errors: `MaxPool1d`."""

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


class _DividedAvgPool(_AvgPool):
    """A mean whose divisor can be given."""

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ):
        if divisor_override == 0:
            raise UsageError("divisor_override must not be 0")
        self._set(kernel_size, stride, padding, 1, ceil_mode)
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override


class AvgPool2d(_DividedAvgPool):
    """torch.nn.AvgPool2d. (B, H, W, C) -> (B, H', W', C). Errors: `MaxPool1d`; a divisor of 0."""

    rank = 2


class AvgPool3d(_DividedAvgPool):
    """torch.nn.AvgPool3d. (B, D, H, W, C) -> (B, D', H', W', C). Errors: `AvgPool2d`."""

    rank = 3


class _LPPool(_AvgPool):
    """The p-norm of each window, p = `norm_type`; a window that ceil_mode lets reach over the end is scaled up."""

    def __init__(
        self, norm_type: float | int, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
    ):
        self._set(kernel_size, stride, 0, 1, ceil_mode)
        self.norm_type, self.count_include_pad, self.divisor_override = norm_type, True, None

    def _pool(self, x: Array) -> Array:
        mean = super()._pool(x**self.norm_type)
        total = jnp.sign(mean) * jax.nn.relu(jnp.abs(mean)) * math.prod(self.kernel_size)
        return total ** (1 / self.norm_type)


class LPPool1d(_LPPool):
    """torch.nn.LPPool1d. (B, T, C) -> (B, T', C). Errors: `MaxPool1d`."""

    rank = 1


class LPPool2d(_LPPool):
    """torch.nn.LPPool2d. (B, H, W, C) -> (B, H', W', C). Errors: `MaxPool1d`."""

    rank = 2


class LPPool3d(_LPPool):
    """torch.nn.LPPool3d. (B, D, H, W, C) -> (B, D', H', W', C). Errors: `MaxPool1d`."""

    rank = 3


def first_max(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*reduced"]:
    """The maximum along an axis; its gradient goes to the first of equal values, as torch's does."""
    index = jnp.expand_dims(jnp.argmax(jax.lax.stop_gradient(x), axis), axis)
    return jnp.take_along_axis(x, index, axis).squeeze(axis)


def spatial_indices(shape: tuple[int, ...]) -> Int[Array, "1 *space 1"]:
    """The index of each element of one channel of (B, *space, C), as torch numbers them."""
    return jnp.arange(math.prod(shape[1:-1])).reshape(1, *shape[1:-1], 1)
