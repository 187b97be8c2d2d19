"""How the values of a loss become one number, and the base class of the losses."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from jaxarch.errors import DataError, unknown
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.module import Buffer, Module

REDUCTIONS = ("mean", "sum", "none")


class Loss(Module):
    """The base class of losses: the older flags `size_average` and `reduce` stand for a reduction, as in torch.

    Raises:
        UsageError: unknown reduction.
    """

    def __init__(self, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"):
        self.reduction = reduction_name(size_average, reduce, reduction, (*REDUCTIONS, "batchmean"))


class WeightedLoss(Loss):
    """The base class of losses with a fixed `weight`, which is a buffer."""

    def __init__(
        self,
        weight: Float[Array, "..."] | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        self.weight = optional_buffer(weight)


def optional_buffer(value: Float[Array, "..."] | None) -> Any:
    """A buffer, or the placeholder of one that the loss was built without."""
    return nnx.data(None) if value is None else Buffer(jnp.asarray(value))


def optional_value(buffer: Any) -> Array | None:
    """The array of an optional buffer."""
    return None if buffer is None else buffer[...]


def reduction_name(
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    known: tuple[str, ...] = REDUCTIONS,
) -> str:
    """The reduction that torch's older flags mean; `reduction` where neither is given.

    Raises:
        UsageError: unknown reduction.
    """
    if size_average is not None or reduce is not None:
        averaged = "mean" if size_average is None or size_average else "sum"
        reduction = averaged if reduce is None or reduce else "none"
        message = f"size_average and reduce are deprecated: write reduction={reduction!r}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
    if reduction not in known:
        raise unknown("reduction", reduction, known)
    return reduction


def reduced(
    values: Float[Array, "..."], reduction: str, count: Shaped[Array, ""] | int | None = None
) -> Float[Array, "..."]:
    """The values ("none"), their sum, or the sum over `count`, which is their number if None: NaN for 0.

    Sums are accumulated in float32 at least.

    Raises:
        UsageError: unknown reduction.
    """
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    if reduction == "none":
        return values
    total = values.sum(dtype=accumulation_dtype(values.dtype))
    if reduction == "mean":
        total = total / jnp.asarray(values.size if count is None else count).astype(total.dtype)
    return total.astype(values.dtype)


def promoted(*values: ArrayLike) -> list[Array]:
    """The values in their common floating dtype; integers and Python numbers take that of the others."""
    with jax.numpy_dtype_promotion("standard"):
        dtype: DTypeLike = jnp.result_type(*values)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return [jnp.asarray(value, dtype) for value in values]


def same_shape(input: Shaped[Array, "..."], target: Shaped[Array, "..."], what: str = "target") -> None:
    """Raise a DataError unless both shapes are equal."""
    if input.shape != target.shape:
        raise DataError(f"{what} of shape {target.shape} must have the input's shape {input.shape}")


def refuse_where(bad: Bool[Array, "..."], message: str) -> None:
    """Raise a DataError if any element is True. Under jit values are unknown and nothing is checked."""
    if not isinstance(bad, jax.core.Tracer) and np.any(np.asarray(bad)):
        raise DataError(message)


def at_least(x: Float[Array, "..."], lowest: float) -> Float[Array, "..."]:
    """torch's clamp_min: the gradient at the bound itself is 1."""
    return jnp.where(x < lowest, jnp.asarray(lowest, x.dtype), x)
