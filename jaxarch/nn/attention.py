"""Attention: scaled dot product, exact and fused; multi-head with relative, local and sparse patterns.

Shapes: b batch, h heads, q and k query and key positions, d head size. Two kinds of mask meet here. What
the caller hides (`mask`, True = attend) scores -1e9, so that a row whose keys are all hidden is the uniform
mean of its values, as in guide D. What the pattern excludes (`causal`, local, sparse) can never be
seen: that mean runs over the pattern only, and a causal layer stays causal whatever is masked.
"""

import functools
import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.linear import Embedding, Linear
from jaxarch.nn.module import Module, wide_dtype
from jaxarch.nn.pooling import as_bool
from jaxarch.nn.position import RotaryEmbedding

ATTENTION_TYPES = ("standard", "relative", "local", "sparse")
POSITIONS = ("none", "rope")
HIDDEN = -1e9

_log = logging.getLogger(__name__)


class Cache(NamedTuple):
    """Keys and values of the positions seen so far, in arrays that do not grow; `length` counts them."""

    k: Float[Array, "b h m d"]
    v: Float[Array, "b h m d"]
    length: Int[Array, ""]


class MultiHeadAttention(Module):
    """Multi-head attention with guide D's names `w_q w_k w_v w_o` (Vaswani et al. 2017, arXiv:1706.03762).

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D); with `return_weights` also the weights after
    dropout (B, H, Tq, Tk); with `cache` also the cache that now holds the new keys. The mask is (B, Tk),
    (B, Tq, Tk) or broadcasts to (B, H, Tq, Tk).

    attention_type:
        "relative": learned vectors for clipped distances, on keys and values (Shaw et al. 2018,
            arXiv:1803.02155), up to `max_relative_position` = w.
        "local": keys at a distance of at most w.
        "sparse": those, and every key at a multiple of w (the strided pattern of Child et al. 2019,
            arXiv:1904.10509). Local and sparse attention of a sequence to itself computes only the blocks
            that the pattern touches, unless dropout is active, weights are asked for or the mask has a row
            per query.
    use_flash_attention: a fused kernel. While dropout is active the exact path runs, which draws its mask
        where it can be injected.
    causal: a query sees no later key; queries are the last Tq of the Tk positions.

    Raises:
        UsageError: unknown type; heads that do not divide the width; fused and relative at once.
        DataError: in the call, a mask that does not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        attention_type: str = "standard",
        max_relative_position: int = 32,
        use_flash_attention: bool = False,
        position: str = "none",
        causal: bool = False,
        max_len: int = 5000,
        rope_layout: str = "interleaved",
        use_learnable: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if attention_type not in ATTENTION_TYPES:
            raise unknown("attention type", attention_type, ATTENTION_TYPES)
        if position not in POSITIONS:
            raise unknown("position", position, POSITIONS)
        if d_model % n_heads:
            raise UsageError(f"n_heads {n_heads} does not divide d_model {d_model}")
        if max_relative_position < 1:
            raise UsageError(f"max_relative_position must be at least 1, not {max_relative_position}")
        if use_flash_attention and attention_type == "relative":
            raise UsageError("there is no fused kernel for relative attention: unset use_flash_attention")
        if use_learnable and position != "rope":
            raise UsageError("use_learnable learns rotary frequencies: it needs position='rope'")
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, d_model // n_heads
        self.attention_type, self.window = attention_type, max_relative_position
        self.use_flash_attention, self.causal = use_flash_attention, causal
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
        if position == "rope":
            self.rope = RotaryEmbedding(
                self.head_dim, max_len, layout=rope_layout, learnable=use_learnable, rngs=rngs
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
        mask: Array | None = None,
        cache: Cache | None = None,
        return_weights: bool = False,
    ) -> Float[Array, "b q dm"] | tuple:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self._split(self.w_q(query)), self._split(self.w_k(key)), self._split(self.w_v(value))
        start, k_start = self._starts(q, k, cache)
        if self.rope is not None:
            q, k = self.rope(q, k, start, k_start)
        if cache is not None:
            at = (0, 0, cache.length, 0)
            k = jax.lax.dynamic_update_slice(cache.k, k.astype(cache.k.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.v, v.astype(cache.v.dtype), at)
            cache = Cache(k, v, cache.length + q.shape[2])
        mask = expand_mask(mask, (*q.shape[:3], k.shape[2]))
        weights = None
        if self._runs_blocks(q, k, mask, cache, return_weights):
            strided = self.attention_type == "sparse"
            y = block_attention(q, k, v, mask, self.window, strided=strided, causal=self.causal)
        else:
            q_at, k_at = jnp.arange(q.shape[2]) + start, jnp.arange(k.shape[2])
            seen = pattern(q_at, k_at, self.attention_type, self.window, self.causal)
            if self.use_flash_attention and not return_weights and not self._drops:
                # The kernel knows the plain causal pattern without being handed a mask.
                plain = self.attention_type == "standard" and q.shape[2] == k.shape[2]
                y = fused_attention(q, k, v, mask, None if plain else seen, causal=plain and self.causal)
            else:
                y, weights = self._exact(q, k, v, mask, seen, k_at - q_at[:, None])
        y = self.w_o(y.transpose(0, 2, 1, 3).reshape(query.shape))
        extra = ((weights,) if return_weights else ()) + (() if cache is None else (cache,))
        return (y, *extra) if extra else y

    @property
    def _drops(self) -> bool:
        return self.dropout.p > 0 and not self.dropout.deterministic

    def _distances(self, rngs: nnx.Rngs) -> Embedding:
        table = Embedding(2 * self.window + 1, self.head_dim, rngs=rngs)
        table.weight[...] = init.normal(0.02)(rngs.params(), table.weight.shape)
        return table

    def _split(self, x: Float[Array, "b t dm"]) -> Float[Array, "b h t d"]:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).transpose(0, 2, 1, 3)

    def _starts(self, q: Array, k: Array, cache: Cache | None) -> tuple:
        """The positions of the first query and of the first key."""
        if cache is not None:
            if not self.causal:
                raise UsageError("a cache needs causal=True: later keys would change what was computed")
            return cache.length, cache.length
        behind = k.shape[2] - q.shape[2] if self.causal else 0
        if behind < 0:
            raise DataError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        return behind, 0

    def _runs_blocks(self, q: Array, k: Array, mask: Array | None, cache, return_weights: bool) -> bool:
        return (
            self.attention_type in ("local", "sparse")
            and cache is None
            and q.shape[2] == k.shape[2] > 2 * self.window
            and not (return_weights or self._drops)
            and (mask is None or mask.shape[1:3] == (1, 1))
        )

    def _exact(self, q, k, v, mask, seen, distance: Int[Array, "q k"]) -> tuple[Array, Array]:
        if self.relative_keys is None or self.relative_values is None:
            return exact_attention(q, k, v, mask, seen, self.dropout)
        near = jnp.clip(distance, -self.window, self.window) + self.window
        bias = jnp.einsum("bhqd,qkd->bhqk", q, self.relative_keys(near))
        y, weights = exact_attention(q, k, v, mask, seen, self.dropout, bias)
        return y + jnp.einsum("bhqk,qkd->bhqd", weights, self.relative_values(near)), weights


AdvancedMultiHeadAttention = MultiHeadAttention
MultiHeadAttentionWithRelativePosition = functools.partial(MultiHeadAttention, attention_type="relative")


def attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Array | None = None,
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
    seen = pattern(jnp.arange(n) + (m - n), jnp.arange(m), "standard", 1, causal)
    return exact_attention(q, k, v, expand_mask(mask, (*q.shape[:3], m)), seen, dropout)[0]


def exact_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Bool[Array, "..."] | None,
    seen: Bool[Array, "q k"] | None,
    dropout: Dropout | None = None,
    bias: Float[Array, "b h q k"] | None = None,
) -> tuple[Float[Array, "b h q d"], Float[Array, "b h q k"]]:
    """The result and the weights after dropout. `bias` joins the scores before they are scaled."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    scores = scores if bias is None else scores + bias
    scores = scores.astype(wide_dtype(q.dtype)) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(hide(scores, mask, seen)).astype(q.dtype)
    weights = weights if dropout is None else dropout(weights)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v), weights


def fused_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Bool[Array, "..."] | None = None,
    seen: Bool[Array, "q k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h q d"]:
    """The same by `jax.nn.dot_product_attention`: cuDNN's kernel where it works, XLA elsewhere.

    That function's softmax is float32 always, so float64 takes the exact path. `causal` needs Tq = Tk.
    """
    if q.dtype == jnp.float64:
        at = jnp.arange(q.shape[2])
        return exact_attention(q, k, v, mask, pattern(at, at, "standard", 1, True) if causal else seen)[0]
    if mask is not None:
        at = jnp.arange(q.shape[2])
        pairs = pattern(at, at, "standard", 1, True) if causal else seen
        allowed = mask if pairs is None else mask & pairs
        # A zero query makes equal scores, hence the uniform mean of a row with every key hidden.
        some = allowed.any(-1, keepdims=True)
        q = jnp.where(some, q, 0)
        mask = allowed | (~some if pairs is None else ~some & pairs)
    elif seen is not None:
        mask = seen[None, None]
    shape = None if mask is None else mask.shape
    name = _implementation(jax.default_backend(), q.shape, k.shape, q.dtype.name, shape, causal)
    call = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation=name)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    # JAX's own function mixes dtypes, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return call(q, k, v, mask=mask).transpose(0, 2, 1, 3)


@functools.cache
def _implementation(backend: str, q: tuple, k: tuple, dtype: str, mask: tuple | None, causal: bool) -> str:
    """The fastest implementation that compiles, forward and backward; the log says why if not cuDNN's."""
    if backend != "gpu" or dtype not in ("bfloat16", "float16"):
        return "xla"

    def loss(q, k, v, mask):
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
        return y.astype(jnp.float32).sum()

    args = [jax.ShapeDtypeStruct((x[0], x[2], x[1], x[3]), dtype) for x in (q, k, k)]
    bools = None if mask is None else jax.ShapeDtypeStruct(mask, bool)
    try:
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*args, bools).compile()
    except (ValueError, NotImplementedError, RuntimeError) as e:
        _log.warning("cuDNN attention does not serve %s %s, XLA does: %s", dtype, q, str(e).split("\n")[0])
        return "xla"
    return "cudnn"


def block_attention(
    q: Float[Array, "b h t d"],
    k: Float[Array, "b h t d"],
    v: Float[Array, "b h t d"],
    mask: Bool[Array, "..."] | None,
    window: int,
    strided: bool = False,
    causal: bool = False,
) -> Float[Array, "b h t d"]:
    """Local or strided sparse attention over the blocks it touches: 3 w T scores, and T^2 / w if strided.

    Equal to masking all T^2 scores. Positions are cut into n blocks of w = `window`. A band of w lies in a
    block and its two neighbours; keys at a distance of a multiple of w have the same place in their block.
    """
    b, h, t, d = q.shape
    n, w = -(-t // window), window
    scale = 1 / math.sqrt(d)
    dtype = wide_dtype(q.dtype)
    spare = n * w - t
    qs, ks, vs = (_blocks(jnp.pad(x, ((0, 0), (0, 0), (0, spare), (0, 0))), w) for x in (q, k, v))
    real = (jnp.arange(n * w) < t).reshape(1, 1, n, w, 1)
    kept = None
    if mask is not None:
        kept = _blocks(jnp.pad(mask[:, 0, 0, :, None], ((0, 0), (0, spare), (0, 0)))[:, None], w)

    reach = 2 if causal else 3
    near = functools.partial(_neighbours, reach=reach)
    place = jnp.arange(w)[:, None] - (jnp.arange(reach * w) - w)
    band = (place >= (0 if causal else -w)) & (place <= w) & near(real)[..., 0][..., None, :]
    scores = [jnp.einsum("bhnqd,bhnkd->bhnqk", qs, near(ks)).astype(dtype) * scale]
    scores[0] = hide(scores[0], None if kept is None else near(kept)[..., 0][..., None, :], band)
    if strided:
        apart = jnp.arange(n)[:, None] - jnp.arange(n)
        far = ((apart > 1) | (apart < -1)) & ((apart > 0) | (not causal))
        seen = far & real[0, 0, :, :, 0].T[:, None]
        column = jnp.einsum("bhnqd,bhmqd->bhqnm", qs, ks).astype(dtype) * scale
        column = hide(column, None if kept is None else kept[..., 0].swapaxes(2, 3)[..., None, :], seen)
        scores.append(column.transpose(0, 1, 3, 2, 4))
    weights = jax.nn.softmax(jnp.concatenate(scores, -1)).astype(q.dtype)
    y = jnp.einsum("bhnqk,bhnkd->bhnqd", weights[..., : reach * w], near(vs))
    if strided:
        y = y + jnp.einsum("bhnqm,bhmqd->bhnqd", weights[..., reach * w :], vs)
    return y.reshape(b, h, n * w, d)[:, :, :t]


def _blocks(x: Array, w: int) -> Array:
    return x.reshape(*x.shape[:2], -1, w, x.shape[-1])


def _neighbours(x: Array, reach: int) -> Array:
    """For each of the n blocks (axis 2) the one before, itself and, if reach is 3, the one after, joined."""
    n = x.shape[2]
    wide = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0)))
    return jnp.concatenate([wide[:, :, i : i + n] for i in range(reach)], 3)


def pattern(
    q_at: Int[Array, " q"], k_at: Int[Array, " k"], attention_type: str, window: int, causal: bool
) -> Bool[Array, "q k"] | None:
    """Which pairs of positions an attention type lets meet; None is all of them."""
    apart = q_at[:, None] - k_at
    seen = apart >= 0 if causal else None
    if attention_type not in ("local", "sparse"):
        return seen
    near = jnp.abs(apart) <= window
    if attention_type == "sparse":
        near = near | (apart % window == 0)
    return near if seen is None else near & seen


def hide(scores: Float[Array, "*s"], mask: Array | None, seen: Array | None) -> Float[Array, "*s"]:
    """Scores with hidden keys at -1e9 and excluded ones at the lowest number; see the top of this file."""
    scores = scores if mask is None else jnp.where(mask, scores, HIDDEN)
    return scores if seen is None else jnp.where(seen, scores, jnp.finfo(scores.dtype).min)


def expand_mask(mask: Array | None, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """A mask (B, Tk), (B, Tq, Tk) or of 4 axes as booleans that broadcast to `shape`, (B, H, Tq, Tk).

    Raises:
        DataError: it does not fit.
    """
    if mask is None:
        return None
    wide = mask
    if mask.ndim in (2, 3):
        wide = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if wide.ndim != 4 or any(n not in (1, m) for n, m in zip(wide.shape, shape, strict=True)):
        b, _, q, k = shape
        raise DataError(
            f"a mask of shape {tuple(mask.shape)} does not fit, it must be {(b, k)} or {(b, q, k)}"
        )
    return as_bool(wide)
