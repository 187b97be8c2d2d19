"""Operations over the segments of an array: rows with the same id are summed, averaged, maximised, normalised.

Ids are taken to be in range: the layers check them. Sums are taken in the accumulation dtype.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.nn.kernels.dtypes import accumulation_dtype


def segment_sum(
    data: Float[Array, "e *f"],
    ids: Int[Array, " e"],
    num_segments: int,
    mask: Bool[Array, " e"] | None = None,
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "s *f"]:
    """The sum of the rows of each segment; rows where the mask is False do not count. Empty: 0."""
    upcast = data.astype(accumulation_dtype(data.dtype))
    if mask is not None:
        upcast = jnp.where(_broadcast(mask, upcast), upcast, 0)
    total = jax.ops.segment_sum(upcast, ids, num_segments, indices_are_sorted=indices_are_sorted)
    return total.astype(data.dtype)


def segment_mean(
    data: Float[Array, "e *f"],
    ids: Int[Array, " e"],
    num_segments: int,
    mask: Bool[Array, " e"] | None = None,
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "s *f"]:
    """The mean of the rows of each segment; rows where the mask is False do not count. Empty: 0."""
    upcast = data.astype(accumulation_dtype(data.dtype))
    total = segment_sum(upcast, ids, num_segments, mask, indices_are_sorted=indices_are_sorted)
    count = segment_sum(
        jnp.ones(ids.shape, upcast.dtype), ids, num_segments, mask, indices_are_sorted=indices_are_sorted
    )
    return (total / _broadcast(jnp.maximum(count, 1), total)).astype(data.dtype)


def segment_max(
    data: Float[Array, "e *f"],
    ids: Int[Array, " e"],
    num_segments: int,
    mask: Bool[Array, " e"] | None = None,
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "s *f"]:
    """The maximum of each segment; rows where the mask is False do not count. Empty: 0.

    Equal maxima share the gradient, as in torch's scatter_reduce.
    """
    if mask is not None:
        data = jnp.where(_broadcast(mask, data), data, -jnp.inf)
    valid = jnp.ones(ids.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
    filled = jax.ops.segment_max(valid, ids, num_segments, indices_are_sorted=indices_are_sorted) > 0
    maximum = jax.ops.segment_max(data, ids, num_segments, indices_are_sorted=indices_are_sorted)
    return jnp.where(_broadcast(filled, maximum), maximum, 0)


def segment_softmax(
    logits: Float[Array, "e *f"],
    ids: Int[Array, " e"],
    num_segments: int,
    mask: Bool[Array, " e"] | None = None,
    own: Float[Array, "s *f"] | None = None,
    *,
    indices_are_sorted: bool = False,
) -> tuple[Float[Array, "e *f"], Float[Array, "s *f"] | None]:
    """The softmax over the rows of each segment, and over one more row of its own if given.

    Rows where the mask is False get 0 and do not count. Returns the weights of the rows and of `own`.
    """
    weights, loop, total = segment_exp(
        logits, ids, num_segments, mask, own, indices_are_sorted=indices_are_sorted
    )
    normalized = (weights / rows(total, ids)).astype(logits.dtype)
    return normalized, None if loop is None else (loop / total).astype(logits.dtype)


def segment_exp(
    logits: Float[Array, "e *f"],
    ids: Int[Array, " e"],
    num_segments: int,
    mask: Bool[Array, " e"] | None,
    own: Float[Array, "s *f"] | None,
    *,
    indices_are_sorted: bool,
) -> tuple[Float[Array, "e *f"], Float[Array, "s *f"] | None, Float[Array, "s *f"]]:
    """The numerators of `segment_softmax`, of the rows and of `own` or None, and their sum, 1 in an empty segment."""
    upcast = logits.astype(accumulation_dtype(logits.dtype))
    if mask is not None:
        upcast = jnp.where(_broadcast(mask, upcast), upcast, -jnp.inf)
    fixed = jax.lax.stop_gradient(upcast)
    maximum = jax.ops.segment_max(fixed, ids, num_segments, indices_are_sorted=indices_are_sorted)
    if own is not None:
        maximum = jnp.maximum(maximum, jax.lax.stop_gradient(own).astype(upcast.dtype))
    maximum = jnp.where(jnp.isfinite(maximum), maximum, 0)
    weights = jnp.exp(upcast - rows(maximum, ids))
    total = segment_sum(weights, ids, num_segments, indices_are_sorted=indices_are_sorted)
    if own is None:
        return weights, None, jnp.where(total > 0, total, 1)
    loop = jnp.exp(own.astype(upcast.dtype) - maximum)
    return weights, loop, total + loop


SEGMENTS = {"add": segment_sum, "sum": segment_sum, "mean": segment_mean, "max": segment_max}


def rows(data: Shaped[Array, "n *f"], ids: Int[Array, " e"]) -> Shaped[Array, "e *f"]:
    """The rows of the ids, which the caller has checked."""
    return data.at[ids].get(mode="clip", wrap_negative_indices=False)


def _broadcast(per_row: Shaped[Array, " n"], data: Shaped[Array, "n *f"]) -> Shaped[Array, "n *ones"]:
    """One value per row, shaped to broadcast over what each row holds."""
    return per_row.reshape(-1, *(1,) * (data.ndim - 1))
