"""Attention for long sequences: chunked (exact), Performer, Linformer, Reformer.

Shapes: b batch, h heads, q and k positions, d head size, m features, r hash rounds. Masks: True = may attend;
masked keys and excluded ones: see `jaxarch.nn.attention`. The three layers have no T^2 weights to drop: their
dropout acts on the result.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import UsageError
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels.chunked_attention import chunked
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.lsh_attention import lsh_attention
from jaxarch.nn.kernels.random_features import favor_attention
from jaxarch.nn.linear import Linear
from jaxarch.nn.masks import expand_mask, key_mask
from jaxarch.nn.module import Buffer, Module
from jaxarch.nn.position import check_length


def chunked_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Shaped[Array, "..."] | None = None,
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
    return chunked(q, k, v, expand_mask(mask, (*q.shape[:3], k.shape[2])), chunk_size, causal)


class PerformerAttention(Module):
    """FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794): softmax attention by random features, cost T.

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D). Positive orthogonal features, exp(w x - |x|^2 /
    2), of `n_features` directions w that all heads share: the buffer `projection` (n_features, head_dim). The
    mask is (B, Tk); a row with every key masked gives zero. With `causal` Tq must be Tk.

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
        mask: Shaped[Array, "..."] | None = None,
    ) -> Float[Array, "b q dm"]:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            split_heads(layer(x), self.n_heads)
            for layer, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        y = favor_attention(q, k, v, self.projection[...], key_mask(mask, k), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


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
    `proj_v`; shorter sequences use their first Tk columns. The mask is (B, Tk); a row with every key masked
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
        mask: Shaped[Array, "..."] | None = None,
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
        weights = jax.nn.softmax(scores.astype(accumulation_dtype(q.dtype))).astype(q.dtype)
        return self.dropout(self.w_o(join_heads(jnp.einsum("bhqp,bhpd->bhqd", weights, v))))


class ReformerAttention(Module):
    """Self-attention within hash buckets, query and key shared (Kitaev et al. 2020, arXiv:2001.04451).

    x (B, T, D), mask (B, T) -> (B, T, D). Each of `n_hashes` rounds sorts the positions by bucket, cuts them
    into chunks of `bucket_size`, and lets a position attend to its own chunk and the one before; the result
    is softmax attention over all keys of any round, itself only if there is no other key. Cost T log T: there
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

    def __call__(
        self, x: Float[Array, "b t dm"], mask: Shaped[Array, "..."] | None = None
    ) -> Float[Array, "b t dm"]:
        check_length(x.shape[1], self.max_len)
        q, v = split_heads(self.w_qk(x), self.n_heads), split_heads(self.w_v(x), self.n_heads)
        parts, half = split_buckets(x.shape[1], self.bucket_size)
        rotations = self.rotations[..., : parts * half].reshape(*self.rotations.shape[:2], parts, half)
        y = lsh_attention(q, v, rotations, self.bucket_size, key_mask(mask, q), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


def split_buckets(length: int, bucket_size: int) -> tuple[int, int]:
    """How many parts a bucket's number has for a sequence length, and half of how many values each part takes."""
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
