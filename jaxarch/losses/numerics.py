"""How losses are summed and averaged, and how infinite values are bounded."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxarch.errors import unknown
from jaxarch.nn import accumulation_dtype

REDUCTIONS = ("mean", "sum", "none")


def reduce(
    values: Float[Array, "..."], reduction: str = "mean", count: Num[Array, ""] | int | None = None
) -> Float[Array, "..."]:
    """The values ("none"), their sum, or the sum over `count`, which is their number if None; 0 if it is 0.

    Raises:
        UsageError: unknown reduction.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        count = jnp.asarray(values.size if count is None else count).astype(values.dtype)
        return values.sum() / jnp.where(count == 0, 1, count)
    raise unknown("reduction", reduction, REDUCTIONS)


def finite(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Infinite values as very large finite ones."""
    return jnp.clip(x, lowest(x.dtype), -lowest(x.dtype))


def lowest(dtype: jnp.dtype) -> float:
    """A number so low that its exponential is 0, with room for sums and differences."""
    return float(jnp.finfo(dtype).min) / 1024


def upcast(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """As float32, or as it is if that is no less precise."""
    return x.astype(accumulation_dtype(x.dtype))
