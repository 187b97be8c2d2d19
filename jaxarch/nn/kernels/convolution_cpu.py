"""Convolutions on one CPU, for the kinds that XLA's CPU backend computes many times slower than necessary.

Pointwise kernels are matrix products; depthwise kernels are sums of shifted products; the gradient of any
other ungrouped kernel is a product of patches and output, block by block, so that the patches stay in the
cache. For the remaining kinds the result is None. Sums are float32 or float64. Signals are images of height 1.

Below, x is an image (B, H, W, I), y an output (B, U, V, O) or the gradient of one, kernels are (K, L, I / groups, O).
"""

import operator
from collections.abc import Callable
from functools import partial, reduce, wraps

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.windows import Axes, Window, span, window_slices

Rule = Callable[..., Array | None]
PATCHES = 2**20  # elements in a block of patches: 4 MiB, which a core's share of the cache holds


def for_signals_too(*height_axes: int) -> Callable[[Rule], Rule]:
    """Let a rule for images take signals, and sum in the accumulation dtype.

    `height_axes` are the positions of the height axis in the two operands and in the result.
    """

    def decorate(rule: Rule) -> Rule:
        @wraps(rule)
        def extended(a: Array, b: Array, window: Window, shape: Axes) -> Array | None:
            if not (a.size and b.size):
                return None
            image_shape = shape
            operands = [v.astype(accumulation_dtype(v.dtype)) for v in (a, b)]
            if a.ndim == 3:
                operands = [jnp.expand_dims(v, axis) for v, axis in zip(operands, height_axes, strict=False)]
                image_shape = (*shape[: height_axes[-1]], 1, *shape[height_axes[-1] :])
                (stride,), (padding,), (dilation,), groups = window
                window = Window((1, stride), ((0, 0), padding), (1, dilation), groups)
            result = rule(*operands, window, image_shape)
            return None if result is None else result.reshape(shape).astype(a.dtype)

        return extended

    return decorate


@for_signals_too(1, 0, 1)
def output(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k l j o"], window: Window, shape: Axes
) -> Float[Array, "b u v o"] | None:
    """The convolution; shape is y's."""
    if window.is_pointwise(kernel.shape):
        return (pixels(subsample(x, window.stride)) @ kernel[0, 0]).reshape(shape)
    if window.is_depthwise(kernel.shape):
        _, u, v, _ = shape
        split = phases(x, window)
        return total(
            split[:, i : i + u, a, j : j + v, b] * kernel[*index, 0]
            for index, (i, j), (a, b) in window.taps(kernel.shape)
        )
    return None


@for_signals_too(1, 0, 1)
def image_gradient(
    y: Float[Array, "b u v o"], kernel: Float[Array, "k l j o"], window: Window, shape: Axes
) -> Float[Array, "b h w i"] | None:
    """The gradient with respect to the image, of the given shape; y is the output's gradient."""
    if window.is_pointwise(kernel.shape):
        x = lax.dot_general(pixels(y), kernel[0, 0], (((1,), (1,)), ((), ()))).reshape(*y.shape[:3], -1)
        ends = (
            (0, n - (m - 1) * s - 1, s - 1)
            for n, m, s in zip(shape[1:3], y.shape[1:], window.stride, strict=False)
        )
        return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    if window.is_depthwise(kernel.shape):
        return depthwise_image_gradient(y, kernel, window, shape)
    return None


@for_signals_too(1, 1, 0)
def kernel_gradient(
    x: Float[Array, "b h w i"], y: Float[Array, "b u v o"], window: Window, shape: Axes
) -> Float[Array, "k l j o"] | None:
    """The gradient with respect to the kernel, of the given shape; y is the output's gradient."""
    if window.is_pointwise(shape):
        return contract(pixels(subsample(x, window.stride)), pixels(y)).reshape(shape)
    if window.is_depthwise(shape):
        return depthwise_kernel_gradient(x, y, window, shape)
    if window.groups == 1:
        return dense_kernel_gradient(x, y, window, shape)
    return None


def depthwise_image_gradient(
    y: Float[Array, "b u v o"], kernel: Float[Array, "k l j o"], window: Window, shape: Axes
) -> Float[Array, "b h w i"]:
    """`image_gradient` of a depthwise kernel: each phase of the stride is a convolution of its own."""
    _, (rows, columns) = padded_size(shape, window)
    taps = list(window.taps(kernel.shape))
    up, left = (max(strides[axis] for _, strides, _ in taps) for axis in (0, 1))
    y = materialized(jnp.pad(y, ((0, 0), (up, rows - y.shape[1]), (left, columns - y.shape[2]), (0, 0))))

    def phase(a: int, b: int) -> Array:
        terms = [
            y[:, up - i : up - i + rows, left - j : left - j + columns] * kernel[*index, 0]
            for index, (i, j), remainder in taps
            if remainder == (a, b)
        ]
        return total(terms) if terms else jnp.zeros((len(y), rows, columns, y.shape[-1]), y.dtype)

    down, across = window.stride
    x = jnp.stack([jnp.stack([phase(a, b) for b in range(across)], 3) for a in range(down)], 2)
    x = x.reshape(len(y), rows * down, columns * across, -1)
    (top, _), (start, _) = window.padding
    return x[:, top : top + shape[1], start : start + shape[2]]


def depthwise_kernel_gradient(
    x: Float[Array, "b h w i"], y: Float[Array, "b u v o"], window: Window, shape: Axes
) -> Float[Array, "k l j o"]:
    """`kernel_gradient` of a depthwise kernel: row by row, the products of all taps are accumulated at once."""
    split, (b, u, v, c) = phases(x, window), y.shape
    taps = list(window.taps(shape))
    height = max(i for _, (i, _), _ in taps) + 1

    def add(sums: tuple[Array, ...], n: Array) -> tuple[tuple[Array, ...], None]:
        image, row = n // u, n % u
        x_rows = lax.dynamic_slice(split, (image, row, 0, 0, 0, 0), (1, height, *split.shape[2:]))[0]
        y_row = lax.dynamic_slice(y, (image, row, 0, 0), (1, 1, v, c))[0, 0]
        shifted = (x_rows[i, a, j : j + v, b] for _, (i, j), (a, b) in taps)
        return tuple(s + x_row * y_row for s, x_row in zip(sums, shifted, strict=True)), None

    zeros = tuple(jnp.zeros((v, c), y.dtype) for _ in taps)
    sums, _ = lax.scan(add, zeros, jnp.arange(b * u))
    return jnp.stack([s.sum(0) for s in sums]).reshape(shape)


def dense_kernel_gradient(
    x: Float[Array, "b h w i"], y: Float[Array, "b u v o"], window: Window, shape: Axes
) -> Float[Array, "k l j o"]:
    """`kernel_gradient` of an ungrouped kernel: patches of a few rows, or of a few images, times the output there."""
    b, u, v, _ = y.shape
    x = materialized(jnp.pad(x, ((0, 0), *window.padding, (0, 0))))
    (stride, _), (dilation, _) = window.stride, window.dilation
    patch = shape[0] * shape[1] * shape[2]
    rows = largest_divisor(u, PATCHES // (v * patch))
    images = largest_divisor(b, PATCHES // (u * v * patch)) if rows == u else 1
    height = (rows - 1) * stride + span(shape[0], dilation)

    def product_at(image: Array, row: Array) -> Array:
        x_block = lax.dynamic_slice(x, (image, row * stride, 0, 0), (images, height, *x.shape[2:]))
        y_block = lax.dynamic_slice(y, (image, row, 0, 0), (images, rows, v, y.shape[-1]))
        patches = jnp.concatenate(window_slices(x_block, shape[:2], window.stride, window.dilation), -1)
        return contract(pixels(patches), pixels(y_block))

    def add(gradient: Array, n: Array) -> tuple[Array, None]:
        image, row = n // (u // rows) * images, n % (u // rows) * rows
        return gradient + product_at(image, row), None

    zeros = jnp.zeros((patch, shape[-1]), y.dtype)
    return lax.scan(add, zeros, jnp.arange(b // images * (u // rows)))[0].reshape(shape)


def padded_size(shape: Axes, window: Window) -> tuple[Axes, Axes]:
    """(height, width) of a padded image, rounded up to whole strides; the same in strides."""
    sizes = [n + sum(pads) for n, pads in zip(shape[1:3], window.padding, strict=True)]
    strides = tuple(-(-n // s) for n, s in zip(sizes, window.stride, strict=True))
    return tuple(n * s for n, s in zip(strides, window.stride, strict=True)), strides


def phases(x: Float[Array, "b h w i"], window: Window) -> Float[Array, "b m s n t i"]:
    """A padded image with its axes cut into strides: (B, H / s, s, W / t, t, I), for contiguous slices."""
    sizes, (rows, columns) = padded_size(x.shape, window)
    ends = (
        (before, size - n - before)
        for size, n, (before, _) in zip(sizes, x.shape[1:3], window.padding, strict=True)
    )
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    return materialized(x.reshape(len(x), rows, window.stride[0], columns, window.stride[1], -1))


materialized = lax.optimization_barrier  # or the compiler would pad anew in every term
total = partial(reduce, operator.add)


def pixels(x: Float[Array, "b h w i"]) -> Float[Array, "n i"]:
    """(B, H, W, C) as (B * H * W, C)."""
    return x.reshape(-1, x.shape[-1])


def subsample(x: Float[Array, "b h w i"], stride: Axes) -> Float[Array, "b m n i"]:
    """Every stride-th pixel of both axes."""
    return x[:, :: stride[0], :: stride[1]]


def contract(a: Float[Array, "n i"], b: Float[Array, "n o"]) -> Float[Array, "i o"]:
    """a.T @ b"""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to the limit, or 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and (d <= limit or d == 1))
