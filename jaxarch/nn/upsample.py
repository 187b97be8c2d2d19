"""Resizing by torch's rules, channels last: signals (B, T, C), images (B, H, W, C), volumes (B, D, H, W, C)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn.adaptive_pool import adaptive_mean
from jaxarch.nn.module import Module

Factor = float | int | Sequence[float | int]
# The number of spatial axes that a mode is for; None for any.
MODES = {
    "nearest": None,
    "nearest-exact": None,
    "linear": 1,
    "bilinear": 2,
    "bicubic": 2,
    "trilinear": 3,
    "area": None,
}
CUBIC = -0.75  # torch's coefficient; Keys' is -0.5


class _Axis(NamedTuple):
    """An axis of `size` elements resized to `output` of them, `scale` elements of the input apart."""

    size: int
    output: int
    scale: float | int


def interpolate(
    input: Float[Array, "b *space c"],
    size: int | Sequence[int] | None = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Float[Array, "b *resized c"]:
    """torch.nn.functional.interpolate without antialiasing.

    Args:
        input: (B, *space, C).
        size: of the spatial axes; or
        scale_factor: by which they grow, rounded down. Positions follow the factor, not the rounded size, unless
            recompute_scale_factor is true.
        mode: "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear" or "area".
        align_corners: whether the first and last elements keep their places; of the linear and cubic modes only.

    Raises:
        UsageError: unknown mode; both or none of size and scale_factor; align_corners with another mode.
        DataError: a mode for another number of axes.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    rank = input.ndim - 2
    if rank not in (1, 2, 3) or MODES[mode] not in (None, rank):
        needed = MODES[mode] or "1, 2 or 3"
        raise DataError(f"mode {mode!r} needs {needed} axes between batch and channels, x is {input.shape}")
    if align_corners is not None and MODES[mode] is None:
        raise UsageError(f"align_corners has no meaning with mode {mode!r}: leave it None")
    axes = axes_of(input.shape[1:-1], size, scale_factor, recompute_scale_factor)
    if any(a.output < 1 for a in axes):
        raise DataError(f"x of shape {input.shape} cannot be resized to {[a.output for a in axes]}")
    if mode == "area":
        return adaptive_mean(input, [a.output for a in axes])
    for number, axis in enumerate(axes, 1):
        input = _resized(input, number, axis, mode, bool(align_corners))
    return input


def axes_of(
    sizes: tuple[int, ...],
    size: int | Sequence[int] | None,
    scale_factor: Factor | None,
    recompute_scale_factor: bool | None,
) -> list[_Axis]:
    if (size is None) == (scale_factor is None):
        raise UsageError("resizing needs size or scale_factor, and not both")
    if size is not None:
        if recompute_scale_factor:
            raise UsageError("recompute_scale_factor needs a scale_factor, not a size")
        outputs = _per_axis("size", size, len(sizes))
        return [_Axis(n, int(m), n / m if m else 0) for n, m in zip(sizes, outputs, strict=True)]
    factors = _per_axis("scale_factor", scale_factor, len(sizes))
    axes = []
    for n, factor in zip(sizes, factors, strict=True):
        output = math.floor(n * factor)
        axes.append(_Axis(n, output, n / max(output, 1) if recompute_scale_factor else 1 / factor))
    return axes


def _per_axis(name: str, value: object, rank: int) -> tuple[float | int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank:
        raise UsageError(f"{name} {value} needs {rank} numbers")
    return values  # type: ignore[return-value]


def _resized(x: Array, number: int, axis: _Axis, mode: str, align_corners: bool) -> Array:
    """x with one axis resized: a sum of its elements, each by its weight."""
    if mode in ("nearest", "nearest-exact"):
        return jnp.take(x, _nearest(axis, mode), number)
    total: Array = jnp.zeros((), x.dtype)
    for index, weight in _cubic(axis, align_corners) if mode == "bicubic" else _linear(axis, align_corners):
        along = [1] * x.ndim
        along[number] = axis.output
        total = total + jnp.take(x, index, number) * jnp.asarray(weight.reshape(along), x.dtype)
    return total


def _nearest(axis: _Axis, mode: str) -> np.ndarray:
    """The element that each one of the output is; torch computes it in float32."""
    at = np.arange(axis.output, dtype=np.float32)
    if mode == "nearest" and axis.output == axis.size:
        return np.arange(axis.size)
    if mode == "nearest" and axis.output == 2 * axis.size:
        return np.arange(axis.output) // 2
    at = at + np.float32(0.5) if mode == "nearest-exact" else at
    return np.minimum(np.floor(at * np.float32(axis.scale)).astype(int), axis.size - 1)


def _places(axis: _Axis, align_corners: bool) -> np.ndarray:
    """Where each element of the output is on the input's axis."""
    at = np.arange(axis.output, dtype=np.float64)
    if align_corners:
        return at * ((axis.size - 1) / (axis.output - 1) if axis.output > 1 else 0)
    return axis.scale * (at + 0.5) - 0.5


def _linear(axis: _Axis, align_corners: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two neighbours of each place, and their weights."""
    places = np.maximum(_places(axis, align_corners), 0)
    low = np.minimum(places.astype(int), axis.size - 1)
    weight = np.clip(places - low, 0, 1)
    return [(low, 1 - weight), (np.minimum(low + 1, axis.size - 1), weight)]


def _cubic(axis: _Axis, align_corners: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The four neighbours of each place, and their weights (Keys 1981)."""
    places = _places(axis, align_corners)
    low = np.floor(places).astype(int)
    t = places - low
    near = lambda d: ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1  # noqa: E731  up to one element away
    far = lambda d: ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC  # noqa: E731
    weights = far(t + 1), near(t), near(1 - t), far(2 - t)
    return [(np.clip(low + i - 1, 0, axis.size - 1), w) for i, w in enumerate(weights)]


class Upsample(Module):
    """torch.nn.Upsample: `interpolate` as a layer. (B, *space, C) -> (B, *resized, C). Errors are its own."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: Factor | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ):
        self.size = tuple(size) if isinstance(size, Sequence) else size
        self.scale_factor = tuple(scale_factor) if isinstance(scale_factor, Sequence) else scale_factor
        self.mode, self.align_corners = mode, align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def __call__(self, input: Float[Array, "b *space c"]) -> Float[Array, "b *resized c"]:
        return interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            self.recompute_scale_factor,
        )


class UpsamplingNearest2d(Upsample):
    """torch.nn.UpsamplingNearest2d. (B, H, W, C) -> (B, H', W', C)."""

    def __init__(self, size: int | Sequence[int] | None = None, scale_factor: Factor | None = None):
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """torch.nn.UpsamplingBilinear2d, which aligns corners. (B, H, W, C) -> (B, H', W', C)."""

    def __init__(self, size: int | Sequence[int] | None = None, scale_factor: Factor | None = None):
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)
