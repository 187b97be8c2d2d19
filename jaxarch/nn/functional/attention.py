"""Attention under torch.nn.functional's names, masks with torch's meaning; weights have torch's layout."""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.activation import softmax
from jaxarch.nn.functional.linear import linear
from jaxarch.nn.functional.random import Randomness, dropout
from jaxarch.nn.multihead import attention, merge_masks

Values = Float[Array, "..."]
Mask = Shaped[Array, "..."]


def scaled_dot_product_attention(
    query: Float[Array, "*b q d"],
    key: Float[Array, "*c k d"],
    value: Float[Array, "*c k e"],
    attn_mask: Mask | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    rngs: Randomness = None,
) -> Float[Array, "*b q e"]:
    """torch.nn.functional.scaled_dot_product_attention: softmax(query key^T scale + mask) value.

    The mask broadcasts to (..., Tq, Tk): True = may attend, or numbers that are added. A query that may attend to
    nothing gets 0, as in torch. `is_causal` aligns the first query with the first key. `scale` is 1 / sqrt(D) if
    None. With `enable_gqa` query heads (..., H, Tq, D) share the fewer heads of key and value. Dropout applies
    whenever `dropout_p` is above 0 and takes its random numbers from `rngs`.

    Raises:
        UsageError: a mask and `is_causal` at once; heads that do not divide the query's; dropout without `rngs`.
        DataError: a mask of integers.
    """
    if is_causal and attn_mask is not None:
        raise UsageError("give either attn_mask or is_causal, not both")
    if enable_gqa:
        key, value = (_repeated(x, query.shape[-3]) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("...qd,...kd->...qk", query * scale, key)
    if is_causal:
        attn_mask = jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool)
    if attn_mask is not None:
        scores = scores + _as_bias(attn_mask, scores.dtype)
    weights = _safe_softmax(scores)
    weights = dropout(weights, dropout_p, rngs=rngs)
    return jnp.einsum("...qk,...ke->...qe", weights, value)


def _repeated(x: Float[Array, "*b h t d"], heads: int) -> Float[Array, "*b g t d"]:
    if heads % x.shape[-3]:
        raise UsageError(f"{x.shape[-3]} heads of key and value must divide the query's {heads}")
    return jnp.repeat(x, heads // x.shape[-3], -3)


def _as_bias(mask: Mask, dtype: jnp.dtype) -> Values:
    """A mask as numbers that are added to scores: -inf where a boolean one is False."""
    if jnp.issubdtype(mask.dtype, jnp.floating):
        return mask.astype(dtype)
    if mask.dtype != bool:
        raise DataError(f"a mask holds booleans or floating numbers, not {mask.dtype}")
    return jnp.where(mask, 0, -jnp.inf).astype(dtype)


def _safe_softmax(scores: Values) -> Values:
    """The softmax of the last axis; of -inf alone it is 0, without a gradient."""
    nothing = (scores == -jnp.inf).all(-1, keepdims=True)
    return jnp.where(nothing, 0, softmax(jnp.where(nothing, 0, scores)))


def multi_head_attention_forward(
    query: Values,
    key: Values,
    value: Values,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Values | None,
    in_proj_bias: Values | None,
    bias_k: Values | None,
    bias_v: Values | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Values,
    out_proj_bias: Values | None,
    training: bool = True,
    key_padding_mask: Mask | None = None,
    need_weights: bool = True,
    attn_mask: Mask | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Values | None = None,
    k_proj_weight: Values | None = None,
    v_proj_weight: Values | None = None,
    static_k: Values | None = None,
    static_v: Values | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    *,
    rngs: Randomness = None,
) -> tuple[Values, Values | None]:
    """torch.nn.functional.multi_head_attention_forward: (Tq, B, E), (Tk, B, E) or without a batch (T, E).

    Time is first and every weight has torch's layout, as in torch; masks are True where attention is blocked, or
    numbers that are added. Returns the output and the weights (B, Tq, Tk), (B, H, Tq, Tk) unless averaged; None
    unless `need_weights`. `nn.MultiheadAttention` is the layer.

    Raises:
        UsageError: arguments that exclude or need each other; heads that do not divide the width; active dropout
            without `rngs`.
        DataError: shapes that do not fit.
    """
    if is_causal and attn_mask is None:
        raise UsageError("is_causal is a hint about attn_mask: give the mask, too")
    if (bias_k is None) != (bias_v is None):
        raise UsageError("bias_k and bias_v go together: give both or none")
    if bias_k is not None and (static_k is not None or static_v is not None):
        raise UsageError("bias_k and bias_v cannot be added to static_k and static_v: leave one pair out")
    given = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else (in_proj_weight,)
    projections = [w for w in given if w is not None]
    if len(projections) < len(given):
        raise UsageError("a projection weight is missing: in_proj_weight, or all of q_, k_ and v_proj_weight")
    if query.shape[-1] != embed_dim_to_check or embed_dim_to_check % num_heads:
        raise DataError(
            f"a query of width {query.shape[-1]} must have the width {embed_dim_to_check}, "
            f"which num_heads {num_heads} must divide"
        )
    batched = query.ndim == 3
    sequences = [x if batched else x[:, None] for x in (query, key, value)]
    packed = projections if use_separate_proj_weight else jnp.split(projections[0], 3)
    biases = (None,) * 3 if in_proj_bias is None else tuple(jnp.split(in_proj_bias, 3))
    q, k, v = (linear(x, w, b) for x, w, b in zip(sequences, packed, biases, strict=True))
    if bias_k is not None and bias_v is not None:
        extra = [(k, bias_k), (v, bias_v)]
        k, v = (jnp.concatenate([x, jnp.broadcast_to(b, (1, *x.shape[1:]))]) for x, b in extra)
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2, 0, 3) for x in (q, k, v))
    k, v = (
        x if static is None else static.reshape(*q.shape[:2], *static.shape[1:])
        for x, static in ((k, static_k), (v, static_v))
    )
    keys = k.shape[2] - (bias_k is not None)
    if add_zero_attn:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in (k, v))
    if key_padding_mask is not None and not batched:
        key_padding_mask = key_padding_mask[None]
    if is_causal and key_padding_mask is None and not need_weights:
        mask: Mask | None = ~jnp.tri(q.shape[2], k.shape[2], dtype=bool)[None, None]
    else:
        mask = merge_masks(attn_mask, key_padding_mask, (*q.shape[:3], keys))
    if mask is not None:
        # What was appended is never blocked.
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, k.shape[2] - mask.shape[3])))
    drop = functools.partial(dropout, p=dropout_p, training=training, rngs=rngs)
    y, weights = attention(q, k, v, mask, drop, need_weights)
    output = linear(y.transpose(2, 0, 1, 3).reshape(sequences[0].shape), out_proj_weight, out_proj_bias)
    weights = weights.mean(1) if average_attn_weights else weights
    if not batched:
        output, weights = output[:, 0], weights[0]
    return output, weights if need_weights else None
