"""Multi-head attention with relative, local and sparse patterns, rotary positions and a cache.

Shapes: b batch, h heads, q and k query and key positions, d head size. There are two kinds of mask, True =
may attend. What the caller masks (`mask`) scores -1e9, so that a row whose keys are all masked is the uniform
mean of its values. What the pattern excludes (`causal`, local, sparse) can never be attended to: that mean
runs over the pattern only, and a causal layer stays causal whatever is masked.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.embedding import Embedding
from jaxarch.nn.kernels.attention import block_attention, exact_attention, fused_attention, pattern
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.switches import is_enabled
from jaxarch.nn.linear import Linear
from jaxarch.nn.masks import as_bool, expand_mask
from jaxarch.nn.module import Module
from jaxarch.nn.position import RotaryEmbedding

ATTENTION_TYPES = ("standard", "relative", "local", "sparse")
POSITIONS = ("none", "rope")

Index = int | Int[Array, ""]


@dataclass(frozen=True)
class AttentionConfig:
    """How positions enter `MultiHeadAttention`.

    position: "none", or "rope" for rotary positions up to `max_len` (Su et al. 2021, arXiv:2104.09864), in
        the pairs of `rope_layout`; `use_learnable` learns their inverse frequencies. See RotaryEmbedding.
    causal: a query attends to no later key; queries are the last Tq of the Tk positions.

    Raises:
        UsageError: unknown position; learned frequencies without rotary positions.
    """

    position: str = "none"
    causal: bool = False
    max_len: int = 5000
    rope_layout: str = "interleaved"
    use_learnable: bool = False

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise unknown("position", self.position, POSITIONS)
        if self.use_learnable and self.position != "rope":
            raise UsageError("use_learnable learns rotary frequencies: it needs position='rope'")


class Cache(NamedTuple):
    """Keys and values of the positions so far, in arrays that do not grow; `length` counts them."""

    k: Float[Array, "b h m d"]
    v: Float[Array, "b h m d"]
    length: Int[Array, ""]

    def extended(self, k: Float[Array, "b h t d"], v: Float[Array, "b h t d"]) -> "Cache":
        """The cache with the keys and values of the next T positions written into it."""
        index = (0, 0, self.length, 0)
        return Cache(
            jax.lax.dynamic_update_slice(self.k, k.astype(self.k.dtype), index),
            jax.lax.dynamic_update_slice(self.v, v.astype(self.v.dtype), index),
            self.length + k.shape[2],
        )


class MultiHeadAttention(Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D); with `return_weights` also the weights after
    dropout (B, H, Tq, Tk); with `cache` also the cache that now holds the new keys. The mask is (B, Tk),
    (B, Tq, Tk) or broadcasts to (B, H, Tq, Tk).

    attention_type:
        "relative": learned vectors for clipped distances, on keys and values (Shaw et al. 2018,
            arXiv:1803.02155), up to `max_relative_position` = w.
        "local": keys at a distance of at most w.
        "sparse": those, and every key at a multiple of w (the strided pattern of Child et al. 2019,
            arXiv:1904.10509). Local and sparse attention of a sequence to itself computes only the blocks
            that the pattern touches, and drops weights there, unless weights are asked for or the mask has a
            row per query. A dropout mask then has the blocks' shape: see `kernels.attention.block_attention`.
    num_heads: another name of n_heads.
    use_flash_attention: a fused kernel. While dropout is active the exact path runs, whose dropout mask can
        be injected.

    Raises:
        UsageError: unknown type; heads that do not divide the width; fused and relative at once.
        DataError: in the call, a mask that does not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int | None = None,
        dropout: float = 0.1,
        attention_type: str = "standard",
        max_relative_position: int = 32,
        use_flash_attention: bool = False,
        config: AttentionConfig | None = None,
        num_heads: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        config = config or AttentionConfig()
        if attention_type not in ATTENTION_TYPES:
            raise unknown("attention type", attention_type, ATTENTION_TYPES)
        n_heads = count_heads(n_heads, num_heads)
        if d_model % n_heads:
            raise UsageError(f"n_heads {n_heads} does not divide d_model {d_model}")
        if max_relative_position < 1:
            raise UsageError(f"max_relative_position must be at least 1, not {max_relative_position}")
        if use_flash_attention and attention_type == "relative":
            raise UsageError("there is no fused kernel for relative attention: unset use_flash_attention")
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, d_model // n_heads
        self.attention_type, self.window = attention_type, max_relative_position
        self.use_flash_attention, self.causal = use_flash_attention, config.causal
        self.w_q = Linear(d_model, d_model, rngs=rngs)
        self.w_k = Linear(d_model, d_model, rngs=rngs)
        self.w_v = Linear(d_model, d_model, rngs=rngs)
        self.w_o = Linear(d_model, d_model, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.relative_keys: Embedding | None = nnx.data(None)
        self.relative_values: Embedding | None = nnx.data(None)
        self.rope: RotaryEmbedding | None = nnx.data(None)
        if attention_type == "relative":
            self.relative_keys = self._distances(rngs)
            self.relative_values = self._distances(rngs)
        if config.position == "rope":
            self.rope = RotaryEmbedding(
                self.head_dim,
                config.max_len,
                layout=config.rope_layout,
                learnable=config.use_learnable,
                rngs=rngs,
            )

    def init_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `max_len` positions."""
        zeros = jnp.zeros((batch, self.n_heads, max_len, self.head_dim), self.w_k.weight.dtype)
        return Cache(zeros, zeros, jnp.zeros((), jnp.result_type(int)))

    def __call__(
        self,
        query: Float[Array, "b q dm"],
        key: Float[Array, "b k dm"] | None = None,
        value: Float[Array, "b k dm"] | None = None,
        mask: Shaped[Array, "..."] | None = None,
        cache: Cache | None = None,
        return_weights: bool = False,
    ) -> Float[Array, "b q dm"] | tuple[Any, ...]:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self._split(self.w_q(query)), self._split(self.w_k(key)), self._split(self.w_v(value))
        start, k_start = self._starts(q, k, cache)
        if self.rope is not None:
            q, k = self.rope(q, k, start, k_start)
        if cache is not None:
            cache = cache.extended(k, v)
            k, v = cache.k, cache.v
        mask = expand_mask(mask, (*q.shape[:3], k.shape[2]))
        weights = None
        if self._runs_blocks(q, k, mask, cache, return_weights):
            strided = self.attention_type == "sparse"
            dropout = self.dropout if self._drops else None
            y = block_attention(q, k, v, mask, self.window, strided, self.causal, dropout)
        else:
            q_positions, k_positions = jnp.arange(q.shape[2]) + start, jnp.arange(k.shape[2])
            allowed = pattern(q_positions, k_positions, self.attention_type, self.window, self.causal)
            if self.use_flash_attention and not return_weights and not self._drops:
                # The kernel knows the plain causal pattern without a mask.
                plain = self.attention_type == "standard" and q.shape[2] == k.shape[2]
                y = fused_attention(q, k, v, mask, None if plain else allowed, causal=plain and self.causal)
            else:
                y, weights = self._exact(q, k, v, mask, allowed, k_positions - q_positions[:, None])
        y = self.w_o(y.transpose(0, 2, 1, 3).reshape(query.shape))
        extra = ((weights,) if return_weights else ()) + (() if cache is None else (cache,))
        return (y, *extra) if extra else y

    def scaled_dot_product_attention(
        self,
        q: Float[Array, "b h q d"],
        k: Float[Array, "b h k d"],
        v: Float[Array, "b h k d"],
        mask: Shaped[Array, "..."] | None = None,
    ) -> tuple[Float[Array, "b h q d"], Float[Array, "b h q k"]]:
        """q, k, v (B, H, T, Dh) -> the result (B, H, Tq, Dh) and the weights (B, H, Tq, Tk) after dropout."""
        return exact_attention(q, k, v, expand_mask(mask, (*q.shape[:3], k.shape[2])), None, self.dropout)

    @property
    def _drops(self) -> bool:
        return self.dropout.p > 0 and not self.dropout.deterministic

    def _distances(self, rngs: nnx.Rngs) -> Embedding:
        table = Embedding(2 * self.window + 1, self.head_dim, rngs=rngs)
        table.weight[...] = init.normal(0.02)(rngs.params(), table.weight.shape)
        return table

    def _split(self, x: Float[Array, "b t dm"]) -> Float[Array, "b h t d"]:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).transpose(0, 2, 1, 3)

    def _starts(self, q: Array, k: Array, cache: Cache | None) -> tuple[Index, Index]:
        """The positions of the first query and of the first key."""
        if cache is not None:
            if not self.causal:
                raise UsageError("a cache needs causal=True: later keys would change what was computed")
            return cache.length, cache.length
        start = k.shape[2] - q.shape[2] if self.causal else 0
        if start < 0:
            raise DataError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        return start, 0

    def _runs_blocks(
        self, q: Array, k: Array, mask: Array | None, cache: Cache | None, return_weights: bool
    ) -> bool:
        return (
            is_enabled("block_attention")
            and self.attention_type in ("local", "sparse")
            and cache is None
            and q.shape[2] == k.shape[2] > 2 * self.window
            and not return_weights
            and (mask is None or mask.shape[1:] == (1, 1, k.shape[2]))
        )

    def _exact(
        self,
        q: Float[Array, "b h q d"],
        k: Float[Array, "b h k d"],
        v: Float[Array, "b h k d"],
        mask: Bool[Array, "..."] | None,
        allowed: Bool[Array, "q k"] | None,
        distance: Int[Array, "q k"],
    ) -> tuple[Float[Array, "b h q d"], Float[Array, "b h q k"]]:
        if self.relative_keys is None or self.relative_values is None:
            return exact_attention(q, k, v, mask, allowed, self.dropout)
        clipped = jnp.clip(distance, -self.window, self.window) + self.window
        bias = jnp.einsum("bhqd,qkd->bhqk", q, self.relative_keys(clipped))
        y, weights = exact_attention(q, k, v, mask, allowed, self.dropout, bias)
        return y + jnp.einsum("bhqk,qkd->bhqd", weights, self.relative_values(clipped)), weights


AdvancedMultiHeadAttention = MultiHeadAttention


class MultiHeadAttentionWithRelativePosition(MultiHeadAttention):
    """Self-attention with relative positions (Shaw et al. 2018): x (B, T, D), mask -> (B, T, D)."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        max_relative_position: int = 32,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(d_model, n_heads, dropout, "relative", max_relative_position, rngs=rngs)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> Any:  # (B, T, D)
        return super().__call__(x, mask=mask)


def count_heads(n_heads: int | None, num_heads: int | None) -> int:
    """The number of heads by either of its two names.

    Raises:
        UsageError: neither is given, or they differ.
    """
    given = {n for n in (n_heads, num_heads) if n is not None}
    if len(given) != 1:
        raise UsageError(f"give the number of heads once: n_heads is {n_heads}, num_heads {num_heads}")
    return given.pop()


def efficient_attention(
    q: Float[Array, "*b q d"],
    k: Float[Array, "*b k d"],
    v: Float[Array, "*b k e"],
    mask: Shaped[Array, "..."] | None = None,
) -> Float[Array, "*b q e"]:
    """softmax(q k^T / sqrt(d)) v, as torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).

    The mask broadcasts to the scores. One of booleans is True where attention is allowed, and a row with every
    key masked gives 0; one of floats is added to the scores.
    """
    if mask is None and q.ndim == 4 and k.shape == v.shape:
        return fused_attention(q, k, v)
    scores = jnp.einsum("...qd,...kd->...qk", q, k).astype(accumulation_dtype(q.dtype)) / q.shape[-1] ** 0.5
    if mask is None or jnp.issubdtype(mask.dtype, jnp.floating):
        weights = jax.nn.softmax(scores if mask is None else scores + mask)
    else:
        allowed = as_bool(mask)
        some = allowed.any(-1, keepdims=True)
        weights = jnp.where(some, jax.nn.softmax(jnp.where(allowed | ~some, scores, -jnp.inf)), 0)
    return jnp.einsum("...qk,...kd->...qd", weights.astype(q.dtype), v)


def scaled_dot_product_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Shaped[Array, "..."] | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
) -> Float[Array, "b h q d"]:
    """softmax(q k^T / sqrt(d)) v, exact in float64; the softmax is float32 at least.

    `mask` broadcasts to (B, H, Tq, Tk) or is (B, Tk) or (B, Tq, Tk). With `causal` the queries are the last
    Tq of the Tk positions, so a cache's newest query sees every key.

    Raises:
        DataError: a mask that does not fit.
    """
    n, m = q.shape[2], k.shape[2]
    allowed = pattern(jnp.arange(n) + (m - n), jnp.arange(m), "standard", 1, causal)
    return exact_attention(q, k, v, expand_mask(mask, (*q.shape[:3], m)), allowed, dropout)[0]
