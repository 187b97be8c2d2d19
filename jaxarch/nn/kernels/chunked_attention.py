"""Exact attention chunk by chunk under an online softmax: memory T chunk_size instead of T^2."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxarch.nn.kernels.attention import mask_scores
from jaxarch.nn.kernels.dtypes import accumulation_dtype


def chunked(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Bool[Array, "_ _ _ _"] | None,
    chunk_size: int,
    causal: bool,
) -> Float[Array, "b h q d"]:
    """softmax(q k^T / sqrt(d)) v (Rabe and Staats 2021, arXiv:2112.05682); the mask broadcasts to (B, H, Tq, Tk).

    Keys come chunk by chunk; the backward pass computes the scores again. With `causal` the queries are the
    last Tq of the Tk positions.
    """
    t, s = q.shape[2], k.shape[2]
    dtype = accumulation_dtype(q.dtype)
    ks, vs = to_chunks(k, 2, chunk_size), to_chunks(v, 2, chunk_size)
    k_positions = to_chunks(jnp.arange(s), 0, chunk_size, s)

    def query_chunk(carry: None, inputs: Any) -> tuple[None, Array]:
        q, q_positions, mask = inputs

        def key_chunk(
            carry: tuple[Array, Array, Array], inputs: Any
        ) -> tuple[tuple[Array, Array, Array], None]:
            maximum, total, y = carry
            k, v, k_positions, mask = inputs
            scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(dtype) / math.sqrt(q.shape[-1])
            allowed = (k_positions < s) & ((k_positions <= q_positions[:, None]) | (not causal))
            scores = mask_scores(scores, mask, allowed)
            higher = jnp.maximum(maximum, jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            # Padding is no key, not even of a query that sees none.
            weights = jnp.where(k_positions < s, jnp.exp(scores - higher), 0)
            shrink = jnp.exp(maximum - higher)
            total = total * shrink + weights.sum(-1, keepdims=True)
            y = y * shrink + jnp.einsum("bhqk,bhkd->bhqd", weights, v.astype(dtype))
            return (higher, total, y), None

        maximum = jnp.full((*q.shape[:3], 1), jnp.finfo(dtype).min, dtype)
        start = (maximum, jnp.zeros_like(maximum), jnp.zeros((*q.shape[:3], v.shape[-1]), dtype))
        key_masks = None if mask is None else mask_chunks(mask, 3, chunk_size, len(k_positions))
        (_, total, y), _ = jax.lax.scan(key_chunk, start, (ks, vs, k_positions, key_masks))
        return None, (y / total).astype(q.dtype)

    q_positions = to_chunks(jnp.arange(t) + (s - t), 0, chunk_size)
    query_masks = None if mask is None else mask_chunks(mask, 2, chunk_size, len(q_positions))
    inputs = to_chunks(q, 2, chunk_size), q_positions, query_masks
    chunks: Array = jax.lax.scan(jax.checkpoint(query_chunk), None, inputs)[1]
    return jnp.moveaxis(chunks, 0, 2).reshape(*q.shape[:2], -1, v.shape[-1])[:, :, :t]


def to_chunks(
    x: Shaped[Array, "*shape"], axis: int, width: int, fill: int | float = 0
) -> Shaped[Array, "n *chunk"]:
    """The chunks of an axis as a new first axis; the last chunk is padded with `fill`."""
    padding = -x.shape[axis] % width
    x = jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)], constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, width, *x.shape[axis + 1 :]), axis, 0)


def mask_chunks(mask: Bool[Array, "_ _ _ _"], axis: int, width: int, count: int) -> Bool[Array, "n _ _ _ _"]:
    """A mask's chunks along an axis, or, where that axis broadcasts, the mask `count` times."""
    if mask.shape[axis] == 1:
        return jnp.broadcast_to(mask, (count, *mask.shape))
    return to_chunks(mask, axis, width)
