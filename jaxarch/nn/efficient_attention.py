"""Attention for long sequences: chunked (exact), Performer, Linformer, Reformer.

Shapes: b batch, h heads, q and k positions, d head size, m features, r hash rounds, n chunks, w a chunk's
width. Masks: True = attend. Hidden keys and excluded ones: see `jaxarch.nn.attention`. The three layers have
no T^2 weights to drop: their dropout acts on the result.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import init
from jaxarch.nn.attention import expand_mask, hide
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Buffer, Module, wide_dtype
from jaxarch.nn.pooling import as_bool
from jaxarch.nn.position import check_length

# A shared query and key is most like itself: Reformer looks there only if there is nowhere else.
ITSELF = -1e5


def chunked_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Array | None = None,
    chunk_size: int = 128,
    causal: bool = False,
) -> Float[Array, "b h q d"]:
    """softmax(q k^T / sqrt(d)) v, exactly, with memory T chunk_size (Rabe and Staats 2021, arXiv:2112.05682).

    Keys come chunk by chunk under an online softmax; the backward pass computes the scores again. The mask is
    (B, Tk), (B, Tq, Tk) or of 4 axes. With `causal` the queries are the last Tq of the Tk positions.

    Raises:
        UsageError: a chunk_size below 1.
        DataError: a mask that does not fit.
    """
    if chunk_size < 1:
        raise UsageError(f"chunk_size must be at least 1, not {chunk_size}")
    t, s = q.shape[2], k.shape[2]
    mask = expand_mask(mask, (*q.shape[:3], s))
    dtype = wide_dtype(q.dtype)
    ks, vs = cut_chunks(k, 2, chunk_size), cut_chunks(v, 2, chunk_size)
    k_at = cut_chunks(jnp.arange(s), 0, chunk_size, s)

    def rows(_, chunk):
        q, q_at, mask = chunk

        def keys(carry, chunk):
            top, total, y = carry
            k, v, k_at, mask = chunk
            scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(dtype) / math.sqrt(q.shape[-1])
            seen = (k_at < s) & ((k_at <= q_at[:, None]) | (not causal))
            scores = hide(scores, mask, seen)
            higher = jnp.maximum(top, jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            weights = jnp.exp(scores - higher)
            shrink = jnp.exp(top - higher)
            total = total * shrink + weights.sum(-1, keepdims=True)
            y = y * shrink + jnp.einsum("bhqk,bhkd->bhqd", weights, v.astype(dtype))
            return (higher, total, y), None

        top = jnp.full((*q.shape[:3], 1), jnp.finfo(dtype).min, dtype)
        start = (top, jnp.zeros_like(top), jnp.zeros((*q.shape[:3], v.shape[-1]), dtype))
        masks = None if mask is None else along_keys(mask, 3, chunk_size, len(k_at))
        (_, total, y), _ = jax.lax.scan(keys, start, (ks, vs, k_at, masks))
        return None, (y / total).astype(q.dtype)

    q_at = cut_chunks(jnp.arange(t) + (s - t), 0, chunk_size)
    masks = None if mask is None else along_keys(mask, 2, chunk_size, len(q_at))
    _, y = jax.lax.scan(jax.checkpoint(rows), None, (cut_chunks(q, 2, chunk_size), q_at, masks))
    return jnp.moveaxis(y, 0, 2).reshape(*q.shape[:2], -1, v.shape[-1])[:, :, :t]


def cut_chunks(x: Array, axis: int, width: int, fill: int = 0) -> Array:
    """The chunks of an axis as a new first axis; the last chunk is filled up."""
    spare = -x.shape[axis] % width
    x = jnp.pad(x, [(0, spare if i == axis else 0) for i in range(x.ndim)], constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, width, *x.shape[axis + 1 :]), axis, 0)


def along_keys(mask: Array, axis: int, width: int, count: int) -> Array:
    """A mask's chunks along an axis, or, where it has one entry for all, that entry again and again."""
    if mask.shape[axis] == 1:
        return jnp.broadcast_to(mask, (count, *mask.shape))
    return cut_chunks(mask, axis, width)


class PerformerAttention(Module):
    """FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794): softmax attention by random features, cost T.

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D). Positive orthogonal features, exp(w x - |x|^2 /
    2), of `n_features` directions w that all heads share: the buffer `projection` (n_features, head_dim). The
    mask is (B, Tk); a row with every key hidden gives zero. With `causal` Tq must be Tk.

    Raises:
        UsageError: heads that do not divide the width, no features.
        DataError: in the call, a mask per query, causal attention with Tq other than Tk.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        n_features: int = 256,
        causal: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.n_heads, self.head_dim, self.causal = n_heads, check_heads(d_model, n_heads), causal
        self.w_q = Linear(d_model, d_model, rngs=rngs)
        self.w_k = Linear(d_model, d_model, rngs=rngs)
        self.w_v = Linear(d_model, d_model, rngs=rngs)
        self.w_o = Linear(d_model, d_model, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.projection = Buffer(orthogonal_features(n_features, self.head_dim, rngs=rngs))

    def __call__(
        self,
        query: Float[Array, "b q dm"],
        key: Float[Array, "b k dm"] | None = None,
        value: Float[Array, "b k dm"] | None = None,
        mask: Array | None = None,
    ) -> Float[Array, "b q dm"]:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            split_heads(layer(x), self.n_heads)
            for layer, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        y = favor_attention(q, k, v, self.projection[...], key_mask(mask, k), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


def favor_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k e"],
    projection: Float[Array, "m d"],
    mask: Bool[Array, "b k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h q e"]:
    """An estimate of softmax(q k^T / sqrt(d)) v from random features.

    Raises:
        DataError: causal attention with another number of queries than keys.
    """
    dtype = wide_dtype(q.dtype)
    w = projection.astype(dtype)
    pq, pk = (log_features(x.astype(dtype), w) for x in (q, k))
    if mask is not None:
        pk = jnp.where(mask[:, None, :, None], pk, -jnp.inf)
    # Constants per query, and one for all keys, cancel: they only keep exp in range.
    pq = jnp.exp(pq - jax.lax.stop_gradient(pq).max(-1, keepdims=True))
    top = jax.lax.stop_gradient(pk).max((2, 3), keepdims=True)
    pk = jnp.exp(pk - jnp.maximum(top, jnp.finfo(dtype).min))
    v = v.astype(dtype)
    if causal:
        if q.shape[2] != k.shape[2]:
            raise DataError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        y, total = causal_sums(pq, pk, v)
    else:
        y = jnp.einsum("bhqm,bhmd->bhqd", pq, jnp.einsum("bhkm,bhkd->bhmd", pk, v))
        total = jnp.einsum("bhqm,bhm->bhq", pq, pk.sum(2))[..., None]
    # Where every key is hidden both sums are zero.
    return (y / jnp.where(total > 0, total, 1)).astype(q.dtype)


def log_features(x: Float[Array, "b h t d"], w: Float[Array, "m d"]) -> Float[Array, "b h t m"]:
    """Logarithms of the positive features of x / d^(1/4)."""
    x = x / x.shape[-1] ** 0.25
    return jnp.einsum("bhtd,md->bhtm", x, w) - 0.5 * (x**2).sum(-1, keepdims=True)


def causal_sums(
    pq: Float[Array, "b h t m"], pk: Float[Array, "b h t m"], v: Float[Array, "b h t d"], width: int = 64
) -> tuple[Float[Array, "b h t d"], Float[Array, "b h t 1"]]:
    """Sums over the keys up to each query, of weights times values and of weights; chunk by chunk."""
    t, width = pq.shape[2], min(width, pq.shape[2])

    def step(carry, chunk):
        state, count = carry
        q, k, x = chunk
        near = jnp.tril(jnp.einsum("bhqm,bhkm->bhqk", q, k))
        y = near @ x + jnp.einsum("bhqm,bhmd->bhqd", q, state)
        total = near.sum(-1) + jnp.einsum("bhqm,bhm->bhq", q, count)
        return (state + jnp.einsum("bhkm,bhkd->bhmd", k, x), count + k.sum(2)), (y, total)

    shape = (*pk.shape[:2], pk.shape[-1])
    start = (jnp.zeros((*shape, v.shape[-1]), v.dtype), jnp.zeros(shape, v.dtype))
    _, (y, total) = jax.lax.scan(step, start, tuple(cut_chunks(x, 2, width) for x in (pq, pk, v)))
    y, total = (jnp.moveaxis(x, 0, 2).reshape(*shape[:2], -1, *x.shape[4:])[:, :, :t] for x in (y, total))
    return y, total[..., None]


def orthogonal_features(n_features: int, dim: int, *, rngs: nnx.Rngs) -> Float[Array, "m d"]:
    """Gaussian directions (n_features, dim), orthogonal in blocks of dim, with independent lengths."""
    if n_features < 1:
        raise UsageError(f"n_features must be at least 1, not {n_features}")
    draw = init.normal(1.0)
    blocks, r = jnp.linalg.qr(draw(rngs.params(), (-(-n_features // dim), dim, dim)))
    # Without the signs the directions would not be uniform, and the estimate biased (Mezzadri 2007).
    blocks = blocks * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None]
    lengths = jnp.linalg.norm(draw(rngs.params(), (n_features, dim)), axis=-1, keepdims=True)
    return blocks.swapaxes(1, 2).reshape(-1, dim)[:n_features] * lengths


class LinformerAttention(Module):
    """Keys and values of T positions projected to `proj_len` (Wang et al. 2020, arXiv:2006.04768), cost T.

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D). All heads share the projections `proj_k` and
    `proj_v`; shorter sequences use their first Tk columns. The mask is (B, Tk); a row with every key hidden
    gives the bias of `w_o`.

    Raises:
        UsageError: heads that do not divide the width.
        DataError: in the call, a mask per query, Tk beyond `max_len`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        proj_len: int = 256,
        max_len: int = 5000,
        *,
        rngs: nnx.Rngs,
    ):
        self.n_heads, self.head_dim, self.max_len = n_heads, check_heads(d_model, n_heads), max_len
        self.w_q = Linear(d_model, d_model, rngs=rngs)
        self.w_k = Linear(d_model, d_model, rngs=rngs)
        self.w_v = Linear(d_model, d_model, rngs=rngs)
        self.w_o = Linear(d_model, d_model, rngs=rngs)
        self.proj_k = Linear(max_len, proj_len, bias=False, rngs=rngs)
        self.proj_v = Linear(max_len, proj_len, bias=False, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "b q dm"],
        key: Float[Array, "b k dm"] | None = None,
        value: Float[Array, "b k dm"] | None = None,
        mask: Array | None = None,
    ) -> Float[Array, "b q dm"]:
        key = query if key is None else key
        value = key if value is None else value
        check_length(key.shape[1], self.max_len)
        q, k, v = (
            split_heads(layer(x), self.n_heads)
            for layer, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        mask = key_mask(mask, k)
        if mask is not None:
            k, v = (jnp.where(mask[:, None, :, None], x, 0) for x in (k, v))
        k = jnp.einsum("bhkd,kp->bhpd", k, self.proj_k.weight[: k.shape[2]])
        v = jnp.einsum("bhkd,kp->bhpd", v, self.proj_v.weight[: v.shape[2]])
        scores = jnp.einsum("bhqd,bhpd->bhqp", q, k) / math.sqrt(self.head_dim)
        weights = jax.nn.softmax(scores.astype(wide_dtype(q.dtype))).astype(q.dtype)
        return self.dropout(self.w_o(join_heads(jnp.einsum("bhqp,bhpd->bhqd", weights, v))))


class ReformerAttention(Module):
    """Self-attention within hash buckets, query and key shared (Kitaev et al. 2020, arXiv:2001.04451).

    x (B, T, D), mask (B, T) -> (B, T, D). Each of `n_hashes` rounds sorts the positions by bucket, cuts them
    into chunks of `bucket_size`, and lets a position see its own chunk and the one before; the result is
    softmax attention over all it saw in any round, itself only if there is nothing else. Cost T log T: there
    are about T / bucket_size buckets, and where they are more than 2 bucket_size a bucket is a pair, or more,
    of smaller hashes, or hashing alone would cost T^2. The buffer `rotations` (head_dim, n_hashes, columns)
    serves lengths up to `max_len`.

    Raises:
        UsageError: heads that do not divide the width, sizes below 1.
        DataError: in the call, a mask per query, T beyond `max_len`.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        bucket_size: int = 64,
        n_hashes: int = 4,
        max_len: int = 5000,
        causal: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if bucket_size < 1 or n_hashes < 1:
            raise UsageError(f"bucket_size and n_hashes must be at least 1, not {bucket_size}, {n_hashes}")
        self.n_heads, self.head_dim, self.max_len = n_heads, check_heads(d_model, n_heads), max_len
        self.bucket_size, self.causal = bucket_size, causal
        self.w_qk = Linear(d_model, d_model, rngs=rngs)
        self.w_v = Linear(d_model, d_model, rngs=rngs)
        self.w_o = Linear(d_model, d_model, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        columns = most_columns(max_len, bucket_size)
        self.rotations = Buffer(init.normal(1.0)(rngs.params(), (self.head_dim, n_hashes, columns)))

    def __call__(self, x: Float[Array, "b t dm"], mask: Array | None = None) -> Float[Array, "b t dm"]:
        check_length(x.shape[1], self.max_len)
        q, v = split_heads(self.w_qk(x), self.n_heads), split_heads(self.w_v(x), self.n_heads)
        parts, half = split_buckets(x.shape[1], self.bucket_size)
        rotations = self.rotations[..., : parts * half].reshape(*self.rotations.shape[:2], parts, half)
        y = lsh_attention(q, v, rotations, self.bucket_size, key_mask(mask, q), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


def lsh_attention(
    q: Float[Array, "b h t d"],
    v: Float[Array, "b h t d"],
    rotations: Float[Array, "d r n m"],
    width: int,
    mask: Bool[Array, "b t"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h t d"]:
    """`ReformerAttention` between the projections."""
    t, spare = q.shape[2], -q.shape[2] % width
    dtype = wide_dtype(q.dtype)
    real = jnp.ones((len(q), t), bool) if mask is None else mask
    buckets = hash_buckets(jax.lax.stop_gradient(q).astype(dtype), rotations.astype(dtype))
    # Hidden positions go last, those that fill the last chunk behind them.
    last = (2 * rotations.shape[-1]) ** rotations.shape[-2]
    buckets = jnp.where(real[:, None, None], buckets, last)
    buckets = jnp.pad(buckets, ((0, 0), (0, 0), (0, 0), (0, spare)), constant_values=last + 1)
    order = buckets.argsort(-1, stable=True)
    rank = order.argsort(-1)
    chunk = rank // width
    keys = unit(q.astype(dtype))
    q, keys, v = (jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0)))[:, :, None] for x in (q, keys, v))
    qs, ks, vs = (in_chunks(jnp.take_along_axis(x, order[..., None], 3), width) for x in (q, keys, v))
    at = in_chunks(order, width)
    ks, vs, k_at = with_previous(ks), with_previous(vs), with_previous(at)
    scores = jnp.einsum("bhrnqd,bhrnkd->bhrnqk", qs.astype(dtype), ks) / math.sqrt(q.shape[-1])
    i, j = at[..., None], k_at[..., None, :]
    times = seen_times(chunk, at, k_at)
    scores = jnp.where(i == j, ITSELF, scores) - jnp.log(jnp.maximum(times, 1).astype(dtype))
    flat = k_at.reshape(*k_at.shape[:3], -1)
    shown = jnp.take_along_axis(jnp.pad(real, ((0, 0), (0, spare)))[:, None, None], flat, 3)
    # Before the first chunk there is none, and what fills the last one is no position.
    first = jnp.arange(at.shape[3])[:, None, None] == 0
    seen = ~(first & (jnp.arange(2 * width) < width)) & (j < t)
    seen = seen & (j <= i) if causal else seen
    scores = hide(scores, shown.reshape(k_at.shape)[..., None, :], seen)
    mass = jax.nn.logsumexp(scores, -1, keepdims=True)
    y = jnp.einsum("bhrnqk,bhrnkd->bhrnqd", jnp.exp(scores - mass), vs.astype(dtype))
    y, mass = (x.reshape(*rank.shape, x.shape[-1]) for x in (y, mass))
    y, mass = (jnp.take_along_axis(x, rank[..., None], 3) for x in (y, mass))
    return (jax.nn.softmax(mass, 2) * y).sum(2)[:, :, :t].astype(q.dtype)


def hash_buckets(x: Float[Array, "b h t d"], rotations: Float[Array, "d r n m"]) -> Int[Array, "b h r t"]:
    """The bucket of every position in every round: of each part the nearest of the directions +-rotations."""
    turned = jnp.einsum("bhtd,drnm->bhrtnm", x, rotations)
    nearest = jnp.concatenate((turned, -turned), -1).argmax(-1)
    parts, count = rotations.shape[-2], 2 * rotations.shape[-1]
    return functools.reduce(
        lambda number, i: number * count + nearest[..., i], range(1, parts), nearest[..., 0]
    )


def seen_times(
    chunk: Int[Array, "b h r t"], at: Int[Array, "b h r n w"], k_at: Int[Array, "b h r n w2"]
) -> Int[Array, "b h r n w w2"]:
    """In how many rounds a query sees a key, for the pairs of every round."""

    def of(x: Array, round: int) -> Array:
        flat = x.reshape(*x.shape[:3], -1)
        return jnp.take_along_axis(chunk[:, :, round, None], flat, 3).reshape(x.shape)

    times = jnp.zeros((*at.shape, k_at.shape[-1]), chunk.dtype)
    for other in range(chunk.shape[2]):
        mine, theirs = of(at, other)[..., None], of(k_at, other)[..., None, :]
        times = times + ((mine == theirs) | (mine == theirs + 1)).astype(times.dtype)
    return times


def in_chunks(x: Array, width: int) -> Array:
    """Axis 3 cut into chunks: (..., T, ...) as (..., n, w, ...)."""
    return x.reshape(*x.shape[:3], -1, width, *x.shape[4:])


def with_previous(x: Array) -> Array:
    """Every chunk (axis 3) behind the one before it, joined along axis 4; the first behind the last."""
    return jnp.concatenate((jnp.roll(x, 1, 3), x), 4)


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x / max(|x|, 1e-12), torch's normalize; a zero vector has a finite gradient."""
    square = (x**2).sum(-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1))
    return x / jnp.where(square > 0, jnp.maximum(norm, 1e-12), 1e-12)


def split_buckets(length: int, bucket_size: int) -> tuple[int, int]:
    """Of how many parts a bucket's number is made for a length, and half of how many values each has."""
    half, parts = max(1, -(-length // (2 * bucket_size))), 1
    while (2 * bucket_size) ** parts < 2 * half:
        parts += 1
    if parts == 1:
        return 1, half
    part = 1
    while (2 * part) ** parts < 2 * half:
        part += 1
    return parts, part


def most_columns(max_len: int, bucket_size: int) -> int:
    """How many rotations serve every length up to `max_len`."""
    parts, half = split_buckets(max_len, bucket_size)
    return max(parts * half, (parts - 1) * bucket_size)


def check_heads(d_model: int, n_heads: int) -> int:
    """The size of a head.

    Raises:
        UsageError: heads that do not divide the width.
    """
    if d_model % n_heads:
        raise UsageError(f"n_heads {n_heads} does not divide d_model {d_model}")
    return d_model // n_heads


def split_heads(x: Float[Array, "b t dm"], n_heads: int) -> Float[Array, "b h t d"]:
    """(B, T, D) as (B, H, T, d)."""
    return x.reshape(*x.shape[:2], n_heads, -1).swapaxes(1, 2)


def join_heads(x: Float[Array, "b h t d"]) -> Float[Array, "b t dm"]:
    """(B, H, T, d) as (B, T, D)."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


def key_mask(mask: Array | None, k: Float[Array, "b h k d"]) -> Bool[Array, "b k"] | None:
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
