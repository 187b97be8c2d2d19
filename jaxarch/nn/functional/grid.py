"""Sampling of images and volumes at the positions of a grid, channels last, by torch's rules."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError, unknown

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")
CUBIC = -0.75  # torch's coefficient


def affine_grid(
    theta: Float[Array, "b r s"], size: Sequence[int], align_corners: bool | None = None
) -> Float[Array, "b *space r"]:
    """torch.nn.functional.affine_grid: the positions in [-1, 1] that an affine map (B, 2, 3) sends pixels to.

    `size` is (B, H, W, C), or (B, D, H, W, C) for maps (B, 3, 4): the channels last. The last axis of the result is
    (x, y) or (x, y, z), x along the last spatial axis, as in torch. align_corners None is False.

    Raises:
        UsageError: a size of another length, or below 1.
        DataError: a theta that does not fit.
    """
    if len(size) not in (4, 5) or min(size) < 1:
        raise UsageError(f"size {tuple(size)} must be (B, H, W, C) or (B, D, H, W, C) of at least 1")
    batch, *space, _ = size
    rank = len(space)
    if theta.shape != (batch, rank, rank + 1):
        raise DataError(f"theta of shape {theta.shape} must have the shape {(batch, rank, rank + 1)}")
    axes = [_positions(n, bool(align_corners), theta.dtype) for n in space]
    grids = jnp.meshgrid(*axes, indexing="ij")
    base = jnp.stack([*reversed(grids), jnp.ones_like(grids[0])], -1)
    return jnp.einsum("...s,brs->b...r", base, theta)


def _positions(n: int, align_corners: bool, dtype: jnp.dtype) -> Float[Array, " n"]:
    """The centres of n pixels in [-1, 1], whose ends are the first and last centre, or their outer edges."""
    if align_corners:
        return jnp.linspace(-1, 1, n, dtype=dtype) if n > 1 else jnp.zeros(1, dtype)
    return (2 * jnp.arange(n, dtype=dtype) + 1) / n - 1


def grid_sample(
    input: Float[Array, "b *space c"],
    grid: Float[Array, "b *positions r"],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Float[Array, "b *positions c"]:
    """torch.nn.functional.grid_sample: values of (B, H, W, C) at positions (B, H', W', 2), (x, y) in [-1, 1].

    Volumes (B, D, H, W, C) take positions (B, D', H', W', 3). x runs along the last spatial axis, as in torch.
    align_corners None is False: -1 and 1 are the outer edges of the border pixels.

    Raises:
        UsageError: unknown mode or padding_mode; bicubic volumes.
        DataError: a grid that does not fit.
    """
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if padding_mode not in PADDING_MODES:
        raise unknown("padding_mode", padding_mode, PADDING_MODES)
    rank = input.ndim - 2
    if (
        rank not in (2, 3)
        or grid.ndim != input.ndim
        or grid.shape[:: len(grid.shape) - 1] != (len(input), rank)
    ):
        raise DataError(
            f"input {input.shape} and grid {grid.shape} must be (B, H, W, C) and (B, H', W', 2), "
            "or (B, D, H, W, C) and (B, D', H', W', 3)"
        )
    if mode == "bicubic" and rank == 3:
        raise UsageError("bicubic sampling is of images (B, H, W, C), as in torch: volumes take 'bilinear'")
    sizes = input.shape[1:-1]
    # The grid's last axis begins with the last spatial axis.
    points = [
        _unnormalized(grid[..., rank - 1 - axis], n, bool(align_corners)) for axis, n in enumerate(sizes)
    ]
    if mode == "bicubic":
        return _cubic(input, points, _index_rule(padding_mode, bool(align_corners)))
    bounded = [_bounded(p, n, padding_mode, bool(align_corners)) for p, n in zip(points, sizes, strict=True)]
    if mode == "nearest":
        return _gathered(input, [jnp.round(p).astype(int) for p in bounded])
    return _linear(input, bounded)


def _unnormalized(x: Array, n: int, align_corners: bool) -> Array:
    """Positions in [-1, 1] as positions in pixels."""
    return (x + 1) / 2 * (n - 1) if align_corners else ((x + 1) * n - 1) / 2


def _bounded(x: Array, n: int, padding_mode: str, align_corners: bool) -> Array:
    """Positions in pixels, clipped or reflected into the image as the padding says; a NaN is -1, as in torch."""
    if padding_mode == "reflection":
        x = _reflected(x, 0, 2 * (n - 1)) if align_corners else _reflected(x, -1, 2 * n - 1)
    if padding_mode == "zeros":
        return x
    inside = (x > 0) & (x < n - 1)  # the gradient at the border itself is 0, as in torch
    return jnp.where(inside, x, jax.lax.stop_gradient(jnp.clip(jnp.nan_to_num(x), 0, n - 1)))


def _reflected(x: Array, twice_low: int, twice_high: int) -> Array:
    """x reflected at both ends, which are given twice as large so that they are integers."""
    if twice_low == twice_high:
        return jnp.zeros_like(x)
    low, length = twice_low / 2, (twice_high - twice_low) / 2
    distance = jnp.abs(x - low)
    rest = jnp.fmod(distance, length)
    flips = jax.lax.stop_gradient(jnp.floor(distance / length))
    return jnp.where(flips % 2 == 0, rest + low, length - rest + low)


def _gathered(
    x: Float[Array, "b *space c"], indices: list[Int[Array, "..."]]
) -> Float[Array, "b *positions c"]:
    """The pixels at indices, 0 outside the image."""
    sizes = x.shape[1:-1]
    inside = jnp.ones(indices[0].shape, bool)
    for i, n in zip(indices, sizes, strict=True):
        inside &= (i >= 0) & (i < n)
    batch = jnp.arange(len(x)).reshape(-1, *(1,) * (indices[0].ndim - 1))
    clipped = [jnp.clip(i, 0, n - 1) for i, n in zip(indices, sizes, strict=True)]
    return jnp.where(inside[..., None], x[(batch, *clipped)], 0)


def _linear(x: Float[Array, "b *space c"], points: list[Array]) -> Float[Array, "b *positions c"]:
    """The weighted sum of the 2^rank pixels around each point."""
    lows = [jnp.floor(p) for p in points]
    total = jnp.zeros((*points[0].shape, x.shape[-1]), x.dtype)
    for corner in itertools.product((0, 1), repeat=len(points)):
        weight = jnp.ones_like(points[0])
        for p, low, high in zip(points, lows, corner, strict=True):
            fraction = p - jax.lax.stop_gradient(low)
            weight = weight * (fraction if high else 1 - fraction)
        indices = [(low + high).astype(int) for low, high in zip(lows, corner, strict=True)]
        total = total + weight[..., None] * _gathered(x, indices)
    return total


def _index_rule(padding_mode: str, align_corners: bool) -> Callable[[Array, int], Int[Array, "..."]]:
    """How bicubic sampling finds each of its 16 pixels: it bounds their indices, not the point."""

    def bounded(index: Array, n: int) -> Int[Array, "..."]:
        return jnp.round(_bounded(index, n, padding_mode, align_corners)).astype(int)

    return bounded


def _cubic(
    x: Float[Array, "b h w c"], points: list[Array], bounded: Callable[[Array, int], Int[Array, "..."]]
) -> Float[Array, "b u v c"]:
    """The weighted sum of the 4 x 4 pixels around each point."""
    lows = [jax.lax.stop_gradient(jnp.floor(p)) for p in points]
    weights = [_cubic_weights(p - low) for p, low in zip(points, lows, strict=True)]
    indices = [
        [bounded(low + i - 1, n) for i in range(4)] for low, n in zip(lows, x.shape[1:-1], strict=True)
    ]
    total = jnp.zeros((*points[0].shape, x.shape[-1]), x.dtype)
    for i, j in itertools.product(range(4), repeat=2):
        weight = weights[0][i] * weights[1][j]
        total = total + weight[..., None] * _gathered(x, [indices[0][i], indices[1][j]])
    return total


def _cubic_weights(t: Array) -> list[Array]:
    """The weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1) (Keys 1981)."""

    def near(d: Array) -> Array:
        return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
