"""Masks, True where an element is valid or may be attended to: checked, as booleans, in the shape a layer needs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.errors import DataError


def as_bool(mask: Shaped[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """A mask of booleans, or of the numbers 1 and 0, as booleans.

    Raises:
        DataError: outside jit, floats other than 0 and 1, which may be meant to be added to scores.
    """
    if jnp.issubdtype(mask.dtype, jnp.floating) and not isinstance(mask, jax.core.Tracer):
        others = np.asarray(mask)[~np.isin(np.asarray(mask), (0, 1))]
        if others.size:
            raise DataError(
                f"a mask must be 1 where attention is allowed and 0 elsewhere, it holds {others.flat[0]}:"
                " give booleans, for one that is added to scores mask == 0"
            )
    return mask if mask.dtype == bool else mask != 0


def valid_steps(x: Shaped[Array, "b t *d"], mask: Shaped[Array, "..."] | None) -> Bool[Array, "b t"]:
    """The mask (B, T) of x (B, T, ...) or of ids (B, T) as booleans; all True if there is none.

    Raises:
        DataError: it has another shape.
    """
    if mask is None:
        return jnp.ones(x.shape[:2], bool)
    if mask.shape != x.shape[:2]:
        raise DataError(f"a mask of shape {tuple(mask.shape)} does not fit, it must be {tuple(x.shape[:2])}")
    return as_bool(mask)


def token_mask(mask: Shaped[Array, "..."] | None) -> Shaped[Array, "b t"] | None:
    """(B, T) of a mask (B, T), (B, Tq, T) or (B, H, Tq, T): True where some position may attend to a token."""
    if mask is None or mask.ndim == 2:
        return mask
    return as_bool(mask).reshape(len(mask), -1, mask.shape[-1]).any(1)


def length_mask(lengths: Int[Array, " b"], steps: int) -> Bool[Array, "b t"]:
    """True before each length. Under jit the values are unknown and only the shape is checked.

    Raises:
        DataError: a length is not in [1, steps]; it is named.
    """
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        for row in np.flatnonzero((values < 1) | (values > steps)):
            raise DataError(f"length {values[row]} of row {row} is out of range: it must be in [1, {steps}]")
    return jnp.arange(steps, dtype=lengths.dtype) < lengths[:, None]


def key_mask(mask: Shaped[Array, "..."] | None, k: Float[Array, "b h k d"]) -> Bool[Array, "b k"] | None:
    """A mask (B, Tk) as booleans.

    Raises:
        DataError: any other shape.
    """
    if mask is None:
        return None
    if mask.shape != (k.shape[0], k.shape[2]):
        raise DataError(
            f"a mask of shape {tuple(mask.shape)} does not fit, it must be {(len(k), k.shape[2])}"
        )
    return as_bool(mask)


def expand_mask(mask: Shaped[Array, "..."] | None, shape: tuple[int, ...]) -> Bool[Array, "_ _ _ _"] | None:
    """A mask (B, Tk), (B, Tq, Tk) or of 4 axes as booleans that broadcast to `shape`, (B, H, Tq, Tk).

    Raises:
        DataError: it does not fit.
    """
    if mask is None:
        return None
    expanded = mask
    if mask.ndim in (2, 3):
        expanded = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if expanded.ndim != 4 or any(n not in (1, m) for n, m in zip(expanded.shape, shape, strict=True)):
        b, _, q, k = shape
        raise DataError(
            f"a mask of shape {tuple(mask.shape)} does not fit, it must be {(b, k)} or {(b, q, k)}"
        )
    return as_bool(expanded)
