"""Softmax attention estimated by positive random features, with cost T: FAVOR+ (arXiv:2009.14794)."""

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
    pq, pk = (log_features(x.astype(dtype), w) for x in (q, k))
    if mask is not None:
        pk = jnp.where(mask[:, None, :, None], pk, -jnp.inf)
    # Constants per query, and one for all keys, cancel: they only keep exp in range.
    pq = jnp.exp(pq - jax.lax.stop_gradient(pq).max(-1, keepdims=True))
    maximum = jax.lax.stop_gradient(pk).max((2, 3), keepdims=True)
    pk = jnp.exp(pk - jnp.maximum(maximum, jnp.finfo(dtype).min))
    v = v.astype(dtype)
    if causal:
        if q.shape[2] != k.shape[2]:
            raise DataError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        y, total = causal_sums(pq, pk, v)
    else:
        y = jnp.einsum("bhqm,bhmd->bhqd", pq, jnp.einsum("bhkm,bhkd->bhmd", pk, v))
        total = jnp.einsum("bhqm,bhm->bhq", pq, pk.sum(2))[..., None]
    # Where every key is masked both sums are zero.
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

    def step(
        carry: tuple[Array, Array], inputs: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        state, count = carry
        q, k, x = inputs
        near = jnp.tril(jnp.einsum("bhqm,bhkm->bhqk", q, k))
        y = near @ x + jnp.einsum("bhqm,bhmd->bhqd", q, state)
        total = near.sum(-1) + jnp.einsum("bhqm,bhm->bhq", q, count)
        return (state + jnp.einsum("bhkm,bhkd->bhmd", k, x), count + k.sum(2)), (y, total)

    shape = (*pk.shape[:2], pk.shape[-1])
    start = (jnp.zeros((*shape, v.shape[-1]), v.dtype), jnp.zeros(shape, v.dtype))
    _, (y, total) = jax.lax.scan(step, start, tuple(to_chunks(x, 2, width) for x in (pq, pk, v)))
    y, total = (jnp.moveaxis(x, 0, 2).reshape(*shape[:2], -1, *x.shape[4:])[:, :, :t] for x in (y, total))
    return y, total[..., None]
