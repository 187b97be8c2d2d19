"""Scaled dot-product attention of projected heads: exact, fused, and block by block for local patterns.

Shapes: b batch, h heads, q and k query and key positions, d head size. Masks are True where a query may attend;
see `jaxarch.nn.attention` for the two kinds, the caller's `mask` and what the pattern has `allowed`.
"""

import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.switches import is_enabled

MASKED_SCORE = -1e9

_log = logging.getLogger(__name__)


def exact_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Bool[Array, "..."] | None,
    allowed: Bool[Array, "q k"] | None,
    dropout: Callable[[Array], Array] | None = None,
    bias: Float[Array, "b h q k"] | None = None,
) -> tuple[Float[Array, "b h q d"], Float[Array, "b h q k"]]:
    """The result and the weights after dropout. `bias` is added to the scores before they are scaled."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    scores = scores if bias is None else scores + bias
    scores = scores.astype(accumulation_dtype(q.dtype)) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(mask_scores(scores, mask, allowed)).astype(q.dtype)
    weights = weights if dropout is None else dropout(weights)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v), weights


def fused_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k d"],
    mask: Bool[Array, "..."] | None = None,
    allowed: Bool[Array, "q k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h q d"]:
    """The same by `jax.nn.dot_product_attention`: cuDNN's kernel where it works, XLA elsewhere.

    That function's softmax is float32 always, so float64 takes the exact path. `causal` needs Tq = Tk.
    """
    positions = jnp.arange(q.shape[2])
    if causal and (mask is not None or q.dtype == jnp.float64 or not is_enabled("fused_attention")):
        allowed = pattern(positions, positions, "standard", 1, True)
    if q.dtype == jnp.float64 or not is_enabled("fused_attention"):
        return exact_attention(q, k, v, mask, allowed)[0]
    if mask is not None:
        both = mask if allowed is None else mask & allowed
        # A zero query makes equal scores, hence the uniform mean of a row with every key masked.
        some = both.any(-1, keepdims=True)
        q = jnp.where(some, q, 0)
        mask = both | (~some if allowed is None else ~some & allowed)
    elif allowed is not None:
        mask = allowed[None, None]
    shape = None if mask is None else mask.shape
    name = _implementation(jax.default_backend(), q.shape, k.shape, q.dtype.name, shape, causal)
    call = functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation=name)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    # JAX's own function mixes dtypes, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return call(q, k, v, mask=mask).transpose(0, 2, 1, 3)


@functools.cache
def _implementation(
    backend: str,
    q: tuple[int, ...],
    k: tuple[int, ...],
    dtype: str,
    mask: tuple[int, ...] | None,
    causal: bool,
) -> str:
    """The fastest implementation that compiles, forward and backward; the log says why if not cuDNN's."""
    if backend != "gpu" or dtype not in ("bfloat16", "float16"):
        return "xla"

    def loss(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
        return y.astype(jnp.float32).sum()

    args = [jax.ShapeDtypeStruct((x[0], x[2], x[1], x[3]), dtype) for x in (q, k, k)]
    mask_struct = None if mask is None else jax.ShapeDtypeStruct(mask, bool)
    try:
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*args, mask_struct).compile()
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
    dropout: Callable[[Array], Array] | None = None,
) -> Float[Array, "b h t d"]:
    """Local or strided sparse attention over the blocks it touches: 3 w T scores, and T^2 / w if strided.

    Equal to masking all T^2 scores. Positions are cut into n blocks of w = `window`. A band of w lies in a
    block and its two neighbours; keys at a distance of a multiple of w have the same index in their block.
    `dropout` acts on the weights of the blocks, (B, H, n, w, 3 w), 2 w for causal, and n more if strided.
    """
    b, h, t, d = q.shape
    n, w = -(-t // window), window
    scale = 1 / math.sqrt(d)
    dtype = accumulation_dtype(q.dtype)
    padding = n * w - t
    qs, ks, vs = (_blocks(jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))), w) for x in (q, k, v))
    valid = (jnp.arange(n * w) < t).reshape(1, 1, n, w, 1)
    key_mask = None
    if mask is not None:
        key_mask = _blocks(jnp.pad(mask[:, 0, 0, :, None], ((0, 0), (0, padding), (0, 0)))[:, None], w)

    count = 2 if causal else 3
    neighbours = functools.partial(_neighbours, count=count)
    distance = jnp.arange(w)[:, None] - (jnp.arange(count * w) - w)
    band = (distance >= (0 if causal else -w)) & (distance <= w)
    band = band & neighbours(valid)[..., 0][..., None, :]
    scores = [jnp.einsum("bhnqd,bhnkd->bhnqk", qs, neighbours(ks)).astype(dtype) * scale]
    near_mask = None if key_mask is None else neighbours(key_mask)[..., 0][..., None, :]
    scores[0] = mask_scores(scores[0], near_mask, band)
    if strided:
        distance = jnp.arange(n)[:, None] - jnp.arange(n)
        far = ((distance > 1) | (distance < -1)) & ((distance > 0) | (not causal))
        column = jnp.einsum("bhnqd,bhmqd->bhqnm", qs, ks).astype(dtype) * scale
        far_mask = None if key_mask is None else key_mask[..., 0].swapaxes(2, 3)[..., None, :]
        column = mask_scores(column, far_mask, far & valid[0, 0, :, :, 0].T[:, None])
        scores.append(column.transpose(0, 1, 3, 2, 4))
    weights = jax.nn.softmax(jnp.concatenate(scores, -1)).astype(q.dtype)
    weights = weights if dropout is None else dropout(weights)
    y = jnp.einsum("bhnqk,bhnkd->bhnqd", weights[..., : count * w], neighbours(vs))
    if strided:
        y = y + jnp.einsum("bhnqm,bhmqd->bhnqd", weights[..., count * w :], vs)
    return y.reshape(b, h, n * w, d)[:, :, :t]


def _blocks(x: Shaped[Array, "b h t d"], w: int) -> Shaped[Array, "b h n w d"]:
    return x.reshape(*x.shape[:2], -1, w, x.shape[-1])


def _neighbours(x: Shaped[Array, "b h n w d"], count: int) -> Shaped[Array, "b h n k d"]:
    """For each of the n blocks the one before, itself and, if count is 3, the one after, joined."""
    n = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0)))
    return jnp.concatenate([padded[:, :, i : i + n] for i in range(count)], 3)


def pattern(
    q_positions: Int[Array, " q"],
    k_positions: Int[Array, " k"],
    attention_type: str,
    window: int,
    causal: bool,
) -> Bool[Array, "q k"] | None:
    """The attention mask of an attention type, True = may attend; None where every query sees every key."""
    distance = q_positions[:, None] - k_positions
    past = distance >= 0 if causal else None
    if attention_type not in ("local", "sparse"):
        return past
    near = jnp.abs(distance) <= window
    if attention_type == "sparse":
        near = near | (distance % window == 0)
    return near if past is None else near & past


def mask_scores(
    scores: Float[Array, "*s"], mask: Bool[Array, "..."] | None, allowed: Bool[Array, "..."] | None
) -> Float[Array, "*s"]:
    """Scores with masked keys at -1e9 and excluded ones at the lowest number of the dtype."""
    scores = scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)
    return scores if allowed is None else jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
