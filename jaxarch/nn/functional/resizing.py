"""Resizing under torch.nn.functional's names, with antialiasing, channels last."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import upsample as layers
from jaxarch.nn.upsample import Factor, axes_of

Values = Float[Array, "..."]
Size = int | Sequence[int] | None


def _triangle(d: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(d), 0, None)


def _cubic(d: np.ndarray) -> np.ndarray:
    """Keys's kernel with -0.5, as in Pillow; without antialiasing torch has -0.75."""
    a, d = -0.5, np.abs(d)
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, (((d - 5) * d + 8) * d - 4) * a
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def _lanczos(d: np.ndarray) -> np.ndarray:
    return np.where(np.abs(d) < 3, np.sinc(d) * np.sinc(d / 3), 0)


# The kernel of a mode with antialiasing, and how far it reaches.
KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos": (_lanczos, 3),
}


def interpolate(
    input: Float[Array, "b *space c"],
    size: Size = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Float[Array, "b *resized c"]:
    """torch.nn.functional.interpolate: `nn.Upsample`, or with `antialias` images by "bilinear", "bicubic", "lanczos".

    (B, *space, C). `size` and `scale_factor` are of the spatial axes. Antialiasing widens the kernel by the factor by
    which an image shrinks, as Pillow does.

    Raises:
        UsageError: unknown mode; both or none of size and scale_factor; antialias with another mode.
        DataError: a mode for another number of axes.
    """
    if not antialias:
        return layers.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor)
    if mode not in KERNELS:
        raise UsageError(f"antialias is for the modes {', '.join(KERNELS)}, not {mode!r}")
    if mode == "lanczos" and align_corners:
        raise UsageError("align_corners has no meaning with mode 'lanczos': leave it None")
    if input.ndim != 4:
        raise DataError(f"antialias needs images (B, H, W, C), not an input of shape {input.shape}")
    for number, axis in enumerate(axes_of(input.shape[1:3], size, scale_factor, recompute_scale_factor), 1):
        scale = axis.scale
        if align_corners:
            scale = (axis.size - 1) / (axis.output - 1) if axis.output > 1 else 0.0
        weights = jnp.asarray(_antialiased(axis.size, axis.output, scale, *KERNELS[mode]), input.dtype)
        input = jnp.moveaxis(jnp.tensordot(weights, input, ([1], [number])), 0, number)
    return input


def _antialiased(
    size: int, output: int, scale: float, kernel: Callable[[np.ndarray], np.ndarray], reach: int
) -> np.ndarray:
    """The weight (output, size) of each element of an axis for each of its resized ones."""
    stretch = max(scale, 1.0)
    weights = np.zeros((output, size))
    for i in range(output):
        centre = scale * (i + 0.5)
        low = max(int(centre - reach * stretch + 0.5), 0)
        high = min(int(centre + reach * stretch + 0.5), size)
        row = kernel((np.arange(low, high) - centre + 0.5) / stretch)
        weights[i, low:high] = row / row.sum()
    return weights


def upsample(
    input: Values,
    size: Size = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Values:
    """`interpolate` under its older name."""
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(input: Values, size: Size = None, scale_factor: Factor | None = None) -> Values:
    """`interpolate` by the nearest element, under its older name."""
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(input: Values, size: Size = None, scale_factor: Factor | None = None) -> Values:
    """Bilinear `interpolate` with aligned corners, under its older name."""
    return interpolate(input, size, scale_factor, "bilinear", align_corners=True)
