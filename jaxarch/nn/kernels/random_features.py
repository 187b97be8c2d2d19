"""Softmax attention estimated by positive random features, with cost T: FAVOR+ (arXiv:2009.14794)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxarch.errors import DataError
from jaxarch.nn.kernels.chunked_attention import to_chunks
from jaxarch.nn.kernels.dtypes import accumulation_dtype


def favor_attention(
    q: Float[Array, "b h q d"],
    k: Float[Array, "b h k d"],
    v: Float[Array, "b h k e"],
    projection: Float[Array, "m d"],
    mask: Bool[Array, "b k"] | None = None,
    causal: bool = False,
) -> Float[Array, "b h q e"]:
    """An estimate of softmax(q k^T / sqrt(d)) v from m random features.

    Raises:
        DataError: causal attention with another number of queries than keys.
    """
    dtype = accumulation_dtype(q.dtype)
    w = projection.astype(dtype)
    lq, lk = (log_features(x.astype(dtype), w) for x in (q, k))
    if mask is not None:
        lk = jnp.where(mask[:, None, :, None], lk, -jnp.inf)
    v = v.astype(dtype)
    if causal:
        if q.shape[2] != k.shape[2]:
            raise DataError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        y, total = causal_sums(lq, lk, v)
    else:
        # A constant for each feature, taken from the keys and given to the queries, and one for each query cancel.
        # With them the largest product of every query is 1, whatever the scale of the activations.
        shift = highest(lk, 2)
        pq, pk = jnp.exp(lq + shift - highest(lq + shift, 3)), jnp.exp(lk - shift)
        y = jnp.einsum("bhqm,bhmd->bhqd", pq, jnp.einsum("bhkm,bhkd->bhmd", pk, v))
        total = jnp.einsum("bhqm,bhm->bhq", pq, pk.sum(2))[..., None]
    # Where every key is masked both sums are zero.
    return (y / jnp.where(total > 0, total, 1)).astype(q.dtype)


def log_features(x: Float[Array, "b h t d"], w: Float[Array, "m d"]) -> Float[Array, "b h t m"]:
    """Logarithms of the positive features of x / d^(1/4)."""
    x = x / x.shape[-1] ** 0.25
    return jnp.einsum("bhtd,md->bhtm", x, w) - 0.5 * (x**2).sum(-1, keepdims=True)


def highest(x: Float[Array, "*shape"], axis: int) -> Float[Array, "*reduced"]:
    """The maximum over an axis, which stays as 1; a constant to the gradient, and finite."""
    return jnp.maximum(jax.lax.stop_gradient(x).max(axis, keepdims=True), jnp.finfo(x.dtype).min)


def causal_sums(
    lq: Float[Array, "b h t m"], lk: Float[Array, "b h t m"], v: Float[Array, "b h t d"], width: int = 64
) -> tuple[Float[Array, "b h t d"], Float[Array, "b h t 1"]]:
    """Sums over the keys up to each query, of weights times values and of weights, from logarithms of features.

    The sums of a query are scaled by its largest product with a key up to it. Earlier chunks of `width` positions,
    a power of two, are a state with the highest logarithm of each feature so far.
    """
    t = lq.shape[2]
    width = min(width, 1 << (t - 1).bit_length())
    lq, lk = (to_chunks(x, 2, width, -jnp.inf) for x in (lq, lk))
    v = to_chunks(v, 2, width)
    largest = _largest_products(*jax.lax.stop_gradient((lq, lk)))
    lq = jnp.where(largest > -jnp.inf, lq - largest, -jnp.inf)
    near = jax.checkpoint(near_sums)(lq, lk, v)

    def step(
        carry: tuple[Array, Array, Array], inputs: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        state, count, shift = carry
        lq, lk, x = inputs
        pq = jnp.exp(lq + shift)
        y = jnp.einsum("bhqm,bhmd->bhqd", pq, state), jnp.einsum("bhqm,bhxm->bhqx", pq, count)
        new_shift = jnp.maximum(shift, highest(lk, 2))
        shrink, pk = jnp.exp(shift - new_shift), jnp.exp(lk - new_shift)
        state = state * shrink.swapaxes(2, 3) + jnp.einsum("bhkm,bhkd->bhmd", pk, x)
        return (state, count * shrink + pk.sum(2, keepdims=True), new_shift), y

    b, h, m, d = *lk.shape[1:3], lk.shape[4], v.shape[4]
    count = jnp.zeros((b, h, 1, m), v.dtype)
    start = jnp.zeros((b, h, m, d), v.dtype), count, jnp.full_like(count, jnp.finfo(v.dtype).min)
    _, far = jax.lax.scan(step, start, (lq, lk, v))
    chunks = (jnp.moveaxis(a + b, 0, 2) for a, b in zip(near, far, strict=True))
    y, total = (x.reshape(b, h, -1, x.shape[4])[:, :, :t] for x in chunks)
    return y, total


def _largest_products(
    lq: Float[Array, "n b h w m"], lk: Float[Array, "n b h w m"]
) -> Float[Array, "n b h w 1"]:
    """The logarithm of the largest product of each query's features with those of a key up to it."""
    tops = jax.lax.cummax(lk.max(3), axis=0)
    before = jnp.concatenate((jnp.full_like(tops[:1], -jnp.inf), tops[:-1]))

    def step(top: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        top = jnp.maximum(top, pair[1])
        return top, (pair[0] + top).max(-1)

    # All chunks at once, one position after another: faster than a cumulative maximum over all positions.
    _, largest = jax.lax.scan(step, before, (jnp.moveaxis(lq, 3, 0), jnp.moveaxis(lk, 3, 0)))
    return jnp.moveaxis(largest, 0, 3)[..., None]


def near_sums(
    lq: Float[Array, "*n w m"], lk: Float[Array, "*n w m"], v: Float[Array, "*n w d"]
) -> tuple[Float[Array, "*n w d"], Float[Array, "*n w 1"]]:
    """`causal_sums` within chunks whose width is a power of two.

    The highest keys of a chunk scale its queries and keys, unless a later key is so much higher than those which a
    query sees that their products would leave the range of the dtype.
    """
    shift = highest(lk, -2)
    in_range = (lq + shift).max() < 0.7 * math.log(jnp.finfo(lq.dtype).max)
    return jax.lax.cond(in_range, _at_once, _by_halves, lq, lk, v)


def _at_once(lq: Array, lk: Array, v: Array) -> tuple[Array, Array]:
    shift = highest(lk, -2)
    weights = jnp.tril(jnp.einsum("...qm,...km->...qk", jnp.exp(lq + shift), jnp.exp(lk - shift)))
    return weights @ v, weights.sum(-1, keepdims=True)


def _by_halves(lq: Array, lk: Array, v: Array) -> tuple[Array, Array]:
    """The queries of every second half, second and fourth quarter and so on meet the keys of the part before, all of
    which they see: the highest of these keys scales both without loss.
    """
    total = jnp.exp(lq + lk).sum(-1, keepdims=True)
    y = total * v
    half, width = 1, lq.shape[-2]
    while half < width:
        pairs = [x.reshape(*x.shape[:-2], -1, 2, half, x.shape[-1]) for x in (lq, lk, v)]
        queries, (keys, values) = pairs[0][..., 1, :, :], (x[..., 0, :, :] for x in pairs[1:])
        shift = highest(keys, -2)
        weights = jnp.einsum("...qm,...km->...qk", jnp.exp(queries + shift), jnp.exp(keys - shift))
        for_first = jnp.zeros_like(values), jnp.zeros_like(values[..., :1])
        for_second = weights @ values, weights.sum(-1, keepdims=True)
        both = (jnp.stack(x, -3) for x in zip(for_first, for_second, strict=True))
        y, total = (a + b.reshape(a.shape) for a, b in zip((y, total), both, strict=True))
        half *= 2
    return y, total
