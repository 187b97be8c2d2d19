"""Self-attention within hash buckets, query and key shared, with cost T log T (Reformer, arXiv:2001.04451).

Shapes: b batch, h heads, t positions, d head size, r hash rounds, n chunks, w a chunk's width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.nn.kernels.attention import mask_scores
from jaxarch.nn.kernels.dtypes import accumulation_dtype

# A shared query and key is most like itself: a position attends to itself only if there is no other key.
SELF_SCORE = -1e5


def lsh_attention(
    q: Float[Array, "b h t d"],
    v: Float[Array, "b h t d"],
    rotations: Float[Array, "d r n m"],
    width: int,
    mask: Bool[Array, "b t"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h t d"]:
    """`ReformerAttention` between the projections; `width` is the chunk's."""
    t, padding = q.shape[2], -q.shape[2] % width
    dtype = accumulation_dtype(q.dtype)
    valid = jnp.ones((len(q), t), bool) if mask is None else mask
    buckets = hash_buckets(jax.lax.stop_gradient(q).astype(dtype), rotations.astype(dtype))
    # Masked positions go last, those that pad the last chunk behind them.
    last = (2 * rotations.shape[-1]) ** rotations.shape[-2]
    buckets = jnp.where(valid[:, None, None], buckets, last)
    buckets = jnp.pad(buckets, ((0, 0), (0, 0), (0, 0), (0, padding)), constant_values=last + 1)
    order = buckets.argsort(-1, stable=True)
    rank = order.argsort(-1)
    chunk = rank // width
    keys = normalize(q.astype(dtype))
    q, keys, v = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))[:, :, None] for x in (q, keys, v))
    qs, ks, vs = (in_chunks(jnp.take_along_axis(x, order[..., None], 3), width) for x in (q, keys, v))
    positions = in_chunks(order, width)
    ks, vs, k_positions = with_previous(ks), with_previous(vs), with_previous(positions)
    scores = jnp.einsum("bhrnqd,bhrnkd->bhrnqk", qs.astype(dtype), ks) / math.sqrt(q.shape[-1])
    i, j = positions[..., None], k_positions[..., None, :]
    rounds = shared_rounds(chunk, positions, k_positions)
    scores = jnp.where(i == j, SELF_SCORE, scores) - jnp.log(jnp.maximum(rounds, 1).astype(dtype))
    flat = k_positions.reshape(*k_positions.shape[:3], -1)
    key_valid = jnp.take_along_axis(jnp.pad(valid, ((0, 0), (0, padding)))[:, None, None], flat, 3)
    # No chunk precedes the first, and what pads the last one is no position.
    first = jnp.arange(positions.shape[3])[:, None, None] == 0
    allowed = ~(first & (jnp.arange(2 * width) < width)) & (j < t)
    allowed = allowed & (j <= i) if causal else allowed
    scores = mask_scores(scores, key_valid.reshape(k_positions.shape)[..., None, :], allowed)
    mass = jax.nn.logsumexp(scores, -1, keepdims=True)
    y = jnp.einsum("bhrnqk,bhrnkd->bhrnqd", jnp.exp(scores - mass), vs.astype(dtype))
    y, mass = (x.reshape(*rank.shape, x.shape[-1]) for x in (y, mass))
    y, mass = (jnp.take_along_axis(x, rank[..., None], 3) for x in (y, mass))
    return (jax.nn.softmax(mass, 2) * y).sum(2)[:, :, :t].astype(q.dtype)


def hash_buckets(x: Float[Array, "b h t d"], rotations: Float[Array, "d r n m"]) -> Int[Array, "b h r t"]:
    """The bucket of every position in every round: of each part the nearest of the directions +-rotations."""
    rotated = jnp.einsum("bhtd,drnm->bhrtnm", x, rotations)
    nearest = jnp.concatenate((rotated, -rotated), -1).argmax(-1)
    parts, count = rotations.shape[-2], 2 * rotations.shape[-1]
    return functools.reduce(
        lambda number, i: number * count + nearest[..., i], range(1, parts), nearest[..., 0]
    )


def shared_rounds(
    chunk: Int[Array, "b h r t"], positions: Int[Array, "b h r n w"], k_positions: Int[Array, "b h r n w2"]
) -> Int[Array, "b h r n w w2"]:
    """In how many rounds a query attends to a key, for the pairs of every round."""

    def chunk_of(x: Array, round: int) -> Array:
        flat = x.reshape(*x.shape[:3], -1)
        return jnp.take_along_axis(chunk[:, :, round, None], flat, 3).reshape(x.shape)

    rounds = jnp.zeros((*positions.shape, k_positions.shape[-1]), chunk.dtype)
    for other in range(chunk.shape[2]):
        query, key = chunk_of(positions, other)[..., None], chunk_of(k_positions, other)[..., None, :]
        rounds = rounds + ((query == key) | (query == key + 1)).astype(rounds.dtype)
    return rounds


def in_chunks(x: Shaped[Array, "b h r t *d"], width: int) -> Shaped[Array, "b h r n w *d"]:
    """Axis 3 cut into chunks: (..., T, ...) as (..., n, w, ...)."""
    return x.reshape(*x.shape[:3], -1, width, *x.shape[4:])


def with_previous(x: Shaped[Array, "b h r n w *d"]) -> Shaped[Array, "b h r n w2 *d"]:
    """Every chunk (axis 3) behind the one before it, joined along axis 4; the first behind the last."""
    return jnp.concatenate((jnp.roll(x, 1, 3), x), 4)


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / max(|x|, 1e-12), as torch's normalize; a zero vector has a finite gradient."""
    square = (x**2).sum(-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / jnp.where(square > 0, jnp.maximum(norm, 1e-12), 1e-12)
