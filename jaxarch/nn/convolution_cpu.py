"""Convolutions on one CPU, for the kinds that XLA's CPU backend computes many times slower than need be.

Kernels of one point are matrix products; depthwise kernels are sums of shifted products; the gradient of any
other ungrouped kernel is a product of patches and output, block by block, so that the patches stay in the
cache. For what is left the answer is None. Sums are float32 or wider. Signals are images of height 1.

Below, x is an image (B, H, W, I), y an output (B, U, V, O) or the gradient of one, kernels are (K, L, I / groups, O).
"""

import operator
from collections.abc import Callable, Iterator
from functools import partial, reduce, wraps
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxarch.nn.module import wide_dtype

Axes = tuple[int, ...]
Rule = Callable[..., Array | None]
PATCHES = 2**20  # elements in a block of patches: 4 MiB, which a core's share of the cache holds
TAPS = 64  # of a depthwise kernel or a pooling window: each is a term for the compiler


class Window(NamedTuple):
    """How a kernel moves over an image: a number, or a pair (before, after), for every spatial axis."""

    stride: Axes
    padding: tuple[tuple[int, int], ...]
    dilation: Axes
    groups: int

    def is_pointwise(self, kernel: Axes) -> bool:
        return self.groups == 1 and kernel[:2] == (1, 1) and not any(map(sum, self.padding))

    def is_depthwise(self, kernel: Axes) -> bool:
        return self.groups > 1 and kernel[2:] == (1, self.groups) and kernel[0] * kernel[1] <= TAPS

    def taps(self, kernel: Axes) -> Iterator[tuple[Axes, Axes, Axes]]:
        """Of every point of a kernel: its index, and where it looks, in whole strides and in steps beyond them."""
        for index in product(range(kernel[0]), range(kernel[1])):
            steps = [divmod(i * d, s) for i, d, s in zip(index, self.dilation, self.stride, strict=True)]
            whole, beyond = zip(*steps, strict=True)
            yield index, whole, beyond


def for_signals_too(*height_at: int) -> Callable[[Rule], Rule]:
    """Let a rule for images take signals, and sum in float32 or wider; where operands and result have their height."""

    def decorate(rule: Rule) -> Rule:
        @wraps(rule)
        def widened(a: Array, b: Array, window: Window, shape: Axes) -> Array | None:
            if not (a.size and b.size):
                return None
            lifted = shape
            wide = [v.astype(wide_dtype(v.dtype)) for v in (a, b)]
            if a.ndim == 3:
                wide = [jnp.expand_dims(v, axis) for v, axis in zip(wide, height_at, strict=False)]
                lifted = (*shape[: height_at[-1]], 1, *shape[height_at[-1] :])
                (stride,), (padding,), (dilation,), groups = window
                window = Window((1, stride), ((0, 0), padding), (1, dilation), groups)
            result = rule(*wide, window, lifted)
            return None if result is None else result.reshape(shape).astype(a.dtype)

        return widened

    return decorate


@for_signals_too(1, 0, 1)
def output(x: Array, kernel: Array, window: Window, shape: Axes) -> Array | None:
    """The convolution; shape is y's."""
    if window.is_pointwise(kernel.shape):
        return (pixels(every(x, window.stride)) @ kernel[0, 0]).reshape(shape)
    if window.is_depthwise(kernel.shape):
        _, u, v, _ = shape
        split = phases(x, window)
        return total(
            split[:, i : i + u, a, j : j + v, b] * kernel[*index, 0]
            for index, (i, j), (a, b) in window.taps(kernel.shape)
        )
    return None


@for_signals_too(1, 0, 1)
def image_gradient(y: Array, kernel: Array, window: Window, shape: Axes) -> Array | None:
    """What the gradient y of an output says of the image; shape is x's."""
    if window.is_pointwise(kernel.shape):
        x = lax.dot_general(pixels(y), kernel[0, 0], (((1,), (1,)), ((), ()))).reshape(*y.shape[:3], -1)
        ends = (
            (0, n - (m - 1) * s - 1, s - 1)
            for n, m, s in zip(shape[1:3], y.shape[1:], window.stride, strict=False)
        )
        return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *ends, (0, 0, 0)))
    if window.is_depthwise(kernel.shape):
        return spread(y, kernel, window, shape)
    return None


@for_signals_too(1, 1, 0)
def kernel_gradient(x: Array, y: Array, window: Window, shape: Axes) -> Array | None:
    """What the gradient y of an output says of the kernel of the given shape."""
    if window.is_pointwise(shape):
        return contract(pixels(every(x, window.stride)), pixels(y)).reshape(shape)
    if window.is_depthwise(shape):
        return row_by_row(x, y, window, shape)
    if window.groups == 1:
        return block_by_block(x, y, window, shape)
    return None


def spread(y: Array, kernel: Array, window: Window, shape: Axes) -> Array:
    """A depthwise kernel's `image_gradient`: each phase of the stride is a convolution of its own."""
    _, (rows, columns) = padded_size(shape, window)
    taps = list(window.taps(kernel.shape))
    up, left = (max(whole[axis] for _, whole, _ in taps) for axis in (0, 1))
    y = settled(jnp.pad(y, ((0, 0), (up, rows - y.shape[1]), (left, columns - y.shape[2]), (0, 0))))

    def phase(a: int, b: int) -> Array:
        terms = [
            y[:, up - i : up - i + rows, left - j : left - j + columns] * kernel[*index, 0]
            for index, (i, j), beyond in taps
            if beyond == (a, b)
        ]
        return total(terms) if terms else jnp.zeros((len(y), rows, columns, y.shape[-1]), y.dtype)

    down, across = window.stride
    x = jnp.stack([jnp.stack([phase(a, b) for b in range(across)], 3) for a in range(down)], 2)
    x = x.reshape(len(y), rows * down, columns * across, -1)
    (top, _), (start, _) = window.padding
    return x[:, top : top + shape[1], start : start + shape[2]]


def row_by_row(x: Array, y: Array, window: Window, shape: Axes) -> Array:
    """A depthwise kernel's gradient: a row's products are added up in place, for all points of the kernel at once."""
    split, (b, u, v, c) = phases(x, window), y.shape
    taps = list(window.taps(shape))
    reach = max(i for _, (i, _), _ in taps) + 1

    def add(sums: tuple[Array, ...], n: Array) -> tuple[tuple[Array, ...], None]:
        image, row = n // u, n % u
        near = lax.dynamic_slice(split, (image, row, 0, 0, 0, 0), (1, reach, *split.shape[2:]))[0]
        here = lax.dynamic_slice(y, (image, row, 0, 0), (1, 1, v, c))[0, 0]
        seen = (near[i, a, j : j + v, b] for _, (i, j), (a, b) in taps)
        return tuple(s + look * here for s, look in zip(sums, seen, strict=True)), None

    none = tuple(jnp.zeros((v, c), y.dtype) for _ in taps)
    sums, _ = lax.scan(add, none, jnp.arange(b * u))
    return jnp.stack([s.sum(0) for s in sums]).reshape(shape)


def block_by_block(x: Array, y: Array, window: Window, shape: Axes) -> Array:
    """A kernel's gradient: patches of a few rows, or of a few images, times the output there."""
    b, u, v, _ = y.shape
    x = settled(jnp.pad(x, ((0, 0), *window.padding, (0, 0))))
    (down, _), (tall, _) = window.stride, window.dilation
    patch = shape[0] * shape[1] * shape[2]
    rows = largest_part(u, PATCHES // (v * patch))
    images = largest_part(b, PATCHES // (u * v * patch)) if rows == u else 1
    reach = (rows - 1) * down + (shape[0] - 1) * tall + 1

    def product_at(image: Array, row: Array) -> Array:
        near = lax.dynamic_slice(x, (image, row * down, 0, 0), (images, reach, *x.shape[2:]))
        here = lax.dynamic_slice(y, (image, row, 0, 0), (images, rows, v, y.shape[-1]))
        patches = jnp.concatenate(looks(near, shape[:2], window.stride, window.dilation), -1)
        return contract(pixels(patches), pixels(here))

    def add(gradient: Array, n: Array) -> tuple[Array, None]:
        image, row = n // (u // rows) * images, n % (u // rows) * rows
        return gradient + product_at(image, row), None

    none = jnp.zeros((patch, shape[-1]), y.dtype)
    return lax.scan(add, none, jnp.arange(b // images * (u // rows)))[0].reshape(shape)


def looks(x: Array, kernel: Axes, stride: Axes, dilation: Axes) -> list[Array]:
    """What each point of a window sees of a padded x (B, *space, C) as it moves: strided slices (B, *places, C)."""
    counts = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[1:-1], kernel, stride, dilation, strict=True)
    ]
    seen = []
    for point in product(*map(range, kernel)):
        start = [i * d for i, d in zip(point, dilation, strict=True)]
        limit = [a + (c - 1) * s + 1 for a, c, s in zip(start, counts, stride, strict=True)]
        seen.append(lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *stride, 1)))
    return seen


def padded_size(shape: Axes, window: Window) -> tuple[Axes, Axes]:
    """(height, width) of a padded image, rounded up to whole strides; the same in strides."""
    sizes = [n + sum(pads) for n, pads in zip(shape[1:3], window.padding, strict=True)]
    strides = tuple(-(-n // s) for n, s in zip(sizes, window.stride, strict=True))
    return tuple(n * s for n, s in zip(strides, window.stride, strict=True)), strides


def phases(x: Array, window: Window) -> Array:
    """A padded image with its axes cut into strides: (B, H / s, s, W / t, t, I), for looks without gaps."""
    sizes, (rows, columns) = padded_size(x.shape, window)
    ends = (
        (before, size - n - before)
        for size, n, (before, _) in zip(sizes, x.shape[1:3], window.padding, strict=True)
    )
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))
    return settled(x.reshape(len(x), rows, window.stride[0], columns, window.stride[1], -1))


settled = lax.optimization_barrier  # or the compiler would pad anew in every term
total = partial(reduce, operator.add)


def pixels(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def every(x: Array, stride: Axes) -> Array:
    return x[:, :: stride[0], :: stride[1]]


def contract(a: Array, b: Array) -> Array:
    """a.T @ b"""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def largest_part(n: int, most: int) -> int:
    """The largest divisor of n up to `most`, or 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and (d <= most or d == 1))
