"""torch.nn.MultiheadAttention: queries, keys and values by projections of the layer's own, and torch.nn's masks.

Masks are True where attention is blocked, or floats that are added to the scores. This is torch.nn's convention;
all other attention of `jaxarch.nn` takes masks that are True where attention is allowed.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels.attention import fused_attention
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional
from jaxarch.nn.unbatched import Number, unbatched

Mask = Shaped[Array, "..."] | None


def _batch_axis(layer: "MultiheadAttention") -> int:
    return 0 if layer.batch_first else 1


_BATCH_AXES: dict[str, Number] = {
    "query": _batch_axis,
    "key": _batch_axis,
    "value": _batch_axis,
    "key_padding_mask": 0,
}


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention with its names and initialisers; Vaswani et al. 2017, arXiv:1706.03762.

    query (L, N, embed_dim), key (S, N, kdim) and value (S, N, vdim), or (N, L, embed_dim), (N, S, kdim) and
    (N, S, vdim) if batch_first, or without N
    -> output of query's shape, and the weights after dropout: their mean over heads (N, L, S), or
    (N, num_heads, L, S) without `average_attn_weights`, or None without `need_weights`.

    key_padding_mask is (N, S), or (S,) without N; attn_mask is (L, S) or (N * num_heads, L, S). `is_causal` says
    that attn_mask is causal, and needs it. Without need_weights, key_padding_mask and active dropout it is not
    read then: a fused kernel knows the pattern.

    add_bias_kv appends a learned key and value to every sequence, add_zero_attn a zero of each; both count in S of
    the weights. A query whose keys are all blocked gives NaN with need_weights, and 0 before `out_proj` without;
    torch's inference fast path gives NaN in both.

    Raises:
        UsageError: a size is not positive, heads do not divide the width, or is_causal without attn_mask.
        DataError: in the call, an input or a mask that does not fit.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {
        "in_proj_weight": (1, 0),
        "q_proj_weight": (1, 0),
        "k_proj_weight": (1, 0),
        "v_proj_weight": (1, 0),
    }

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise UsageError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.add_zero_attn, self.batch_first = add_zero_attn, batch_first
        packed = self.kdim == self.vdim == embed_dim
        self.in_proj_weight: Any = self._drawn(3 * embed_dim, embed_dim, rngs) if packed else nnx.data(None)
        self.q_proj_weight: Any = nnx.data(None) if packed else self._drawn(embed_dim, embed_dim, rngs)
        self.k_proj_weight: Any = nnx.data(None) if packed else self._drawn(embed_dim, self.kdim, rngs)
        self.v_proj_weight: Any = nnx.data(None) if packed else self._drawn(embed_dim, self.vdim, rngs)
        self.in_proj_bias: Any = optional(jnp.zeros(3 * embed_dim, init.float_dtype()) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias, rngs=rngs)
        if self.out_proj.bias is not None:
            self.out_proj.bias[...] = jnp.zeros(embed_dim, init.float_dtype())
        self.bias_k: Any = nnx.data(None)
        self.bias_v: Any = nnx.data(None)
        if add_bias_kv:
            draw = init.normal(math.sqrt(2 / (2 * embed_dim)))
            self.bias_k = nnx.Param(draw(rngs.params(), (1, 1, embed_dim)))
            self.bias_v = nnx.Param(draw(rngs.params(), (1, 1, embed_dim)))
        self.dropout = Dropout(dropout, rngs=rngs)

    @staticmethod
    def _drawn(rows: int, columns: int, rngs: nnx.Rngs) -> nnx.Param:
        return nnx.Param(from_torch_layout(init.xavier(rngs.params(), (rows, columns)), (1, 0)))

    @unbatched(2, _BATCH_AXES, (_batch_axis, 0))
    def __call__(
        self,
        query: Float[Array, "*n e"],
        key: Float[Array, "*m k"],
        value: Float[Array, "*u v"],
        key_padding_mask: Mask = None,
        need_weights: bool = True,
        attn_mask: Mask = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Float[Array, "*n e"], Float[Array, "..."] | None]:
        self._check(query, key, value)
        q, k, v = self._projected(query, key, value)
        if self.add_zero_attn:
            k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in (k, v))
        mask = merge_masks(attn_mask, key_padding_mask, (*q.shape[:3], key.shape[1 - _batch_axis(self)]))
        if is_causal and attn_mask is None:
            raise UsageError("is_causal says of attn_mask that it is causal: give the mask as well")
        causal = is_causal and key_padding_mask is None and not need_weights
        if causal:
            mask = ~jnp.tri(q.shape[2], k.shape[2], dtype=bool)[None, None]
        elif mask is not None:
            # What was appended is never blocked.
            mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, k.shape[2] - mask.shape[3])))
        drops = self.dropout.p > 0 and not self.dropout.deterministic
        weights = None
        if need_weights or drops or (mask is not None and mask.dtype != bool):
            y, weights = attention(q, k, v, mask, self.dropout, need_weights)
        else:
            y = _fused(q, k, v, mask, causal)
        y = y.transpose((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)).reshape(query.shape)
        if weights is not None and need_weights:
            weights = weights.mean(1) if average_attn_weights else weights
        return self.out_proj(y), weights if need_weights else None

    def _projected(self, query: Array, key: Array, value: Array) -> list[Float[Array, "n h t d"]]:
        """Queries, keys and values by head; the learned key and value appended."""
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        if self.in_proj_weight is not None:
            weights = jnp.split(self.in_proj_weight[...], 3, 1)
        projected = [x @ w[...] for x, w in zip((query, key, value), weights, strict=True)]
        if self.in_proj_bias is not None:
            biases = jnp.split(self.in_proj_bias[...], 3)
            projected = [x + b for x, b in zip(projected, biases, strict=True)]
        if self.bias_k is not None:
            for i, extra in ((1, self.bias_k), (2, self.bias_v)):
                x, axis = projected[i], 1 - _batch_axis(self)
                shape = (x.shape[0], 1, x.shape[2]) if self.batch_first else (1, *x.shape[1:])
                projected[i] = jnp.concatenate((x, jnp.broadcast_to(extra[...], shape)), axis)
        heads = [x.reshape(*x.shape[:2], self.num_heads, self.head_dim) for x in projected]
        return [x.transpose((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)) for x in heads]

    def _check(self, query: Array, key: Array, value: Array) -> None:
        inputs = (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim))
        for name, x, width in inputs:
            if x.ndim != 3 or x.shape[2] != width:
                raise DataError(
                    f"{name} has shape {x.shape}, it needs the axes of the query and width {width}"
                )
        axis = _batch_axis(self)
        if key.shape[:2] != value.shape[:2] or key.shape[axis] != query.shape[axis]:
            raise DataError(
                f"query {query.shape}, key {key.shape} and value {value.shape} do not fit: key and value need the "
                f"same length, and all three the same batch on axis {axis}"
            )


def merge_masks(
    attn_mask: Mask, key_padding_mask: Mask, shape: tuple[int, ...]
) -> Shaped[Array, "_ _ _ _"] | None:
    """torch.nn's two masks as one that broadcasts to `shape` (N, H, L, S): True where blocked, or floats.

    Raises:
        DataError: a mask of another shape, or of integers.
    """
    n, h, queries, keys = shape
    masks = []
    for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
        if mask is None:
            continue
        known: dict[tuple[int, ...], tuple[int, ...]] = {(n, keys): (n, 1, 1, keys)}
        if name == "attn_mask":
            known = {(n * h, queries, keys): shape, (queries, keys): (1, 1, queries, keys)}
        if mask.shape not in known:
            raise DataError(f"{name} has shape {mask.shape}, it must be {' or '.join(map(str, known))}")
        if mask.dtype != bool and not jnp.issubdtype(mask.dtype, jnp.floating):
            raise DataError(f"{name} must be bool, True where blocked, or floats to add, not {mask.dtype}")
        masks.append(mask.reshape(known[mask.shape]))
    if len(masks) < 2:
        return masks[0] if masks else None
    if masks[0].dtype == masks[1].dtype == bool:
        return masks[0] | masks[1]
    a, b = (jnp.where(m, -jnp.inf, 0.0) if m.dtype == bool else m for m in masks)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype) + b.astype(dtype)


def attention(
    q: Float[Array, "n h l d"],
    k: Float[Array, "n h s d"],
    v: Float[Array, "n h s d"],
    mask: Shaped[Array, "_ _ _ _"] | None,
    dropout: Callable[[Array], Array],
    as_nan: bool,
) -> tuple[Float[Array, "n h l d"], Float[Array, "n h l s"]]:
    """The result and the weights after dropout; a query with every key blocked gives NaN, or 0 unless `as_nan`."""
    scores = jnp.einsum("nhld,nhsd->nhls", q, k).astype(accumulation_dtype(q.dtype)) / math.sqrt(q.shape[-1])
    if mask is not None:
        # Added, and not selected by, so that the gradient of a query without keys is NaN too.
        mask = jnp.where(mask, -jnp.inf, 0.0) if mask.dtype == bool else mask
        scores = scores + mask.astype(scores.dtype)
    if as_nan or mask is None:
        weights = jax.nn.softmax(scores)
    else:
        none = (scores == -jnp.inf).all(-1, keepdims=True)
        weights = jnp.where(none, 0, jax.nn.softmax(jnp.where(none, 0, scores)))
    weights = dropout(weights.astype(q.dtype))
    return jnp.einsum("nhls,nhsd->nhld", weights, v), weights


def _fused(
    q: Float[Array, "n h l d"],
    k: Float[Array, "n h s d"],
    v: Float[Array, "n h s d"],
    blocked: Shaped[Array, "_ _ _ _"] | None,
    causal: bool,
) -> Float[Array, "n h l d"]:
    """`attention` without weights and dropout, by the fused kernel."""
    if causal and q.shape[2] == k.shape[2]:
        return fused_attention(q, k, v, causal=True)
    if blocked is None:
        return fused_attention(q, k, v)
    none = blocked.all(-1, keepdims=True)
    return jnp.where(none, 0, fused_attention(q, k, v, ~blocked))
