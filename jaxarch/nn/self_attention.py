"""Self-attention whose heads share their projections, and its transformer block."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import UsageError
from jaxarch.nn.activation import Activation
from jaxarch.nn.containers import Sequential
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.linear import Linear
from jaxarch.nn.masks import expand_mask
from jaxarch.nn.module import Module
from jaxarch.nn.norm import LayerNorm

MASKED_SCORE = -1e20


class SelfAttention(Module):
    """values, keys (B, Tk, E) and query (B, Tq, E) -> (B, Tq, E).

    Every head goes through the same bias-free `Linear(head_dim, head_dim)`; scores are divided by
    sqrt(embed_size), after masked ones were set to -1e20. The mask is (B, Tk), (B, Tq, Tk) or broadcasts to
    (B, H, Tq, Tk), True = may attend; a row with every key masked is the mean of all values.
    Without `projections` the three of the heads are held and not applied.

    Raises:
        UsageError: heads that do not divide the width.
        DataError: in the call, a mask that does not fit.
    """

    def __init__(self, embed_size: int, heads: int, projections: bool = True, *, rngs: nnx.Rngs):
        if embed_size % heads:
            raise UsageError(f"heads {heads} does not divide embed_size {embed_size}")
        self.embed_size, self.heads, self.head_dim = embed_size, heads, embed_size // heads
        self.projections = projections
        self.values = Linear(self.head_dim, self.head_dim, bias=False, rngs=rngs)
        self.keys = Linear(self.head_dim, self.head_dim, bias=False, rngs=rngs)
        self.queries = Linear(self.head_dim, self.head_dim, bias=False, rngs=rngs)
        self.fc_out = Linear(embed_size, embed_size, rngs=rngs)

    def __call__(
        self,
        values: Float[Array, "b k e"],
        keys: Float[Array, "b k e"],
        query: Float[Array, "b q e"],
        mask: Shaped[Array, "..."] | None = None,
    ) -> Float[Array, "b q e"]:
        v, k, q = self._split(values), self._split(keys), self._split(query)
        if self.projections:
            v, k, q = self.values(v), self.keys(k), self.queries(q)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        scores = scores.astype(accumulation_dtype(scores.dtype))
        mask = expand_mask(mask, scores.shape)
        scores = scores if mask is None else jnp.where(mask, scores, MASKED_SCORE)
        weights = jax.nn.softmax(scores / math.sqrt(self.embed_size)).astype(v.dtype)
        return self.fc_out(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(query.shape))

    def _split(self, x: Float[Array, "b t e"]) -> Float[Array, "b t h d"]:
        return x.reshape(*x.shape[:2], self.heads, self.head_dim)


class SelfAttentionBlock(Module):
    """The block of `SelfAttention`: x = dropout(norm1(attention + query)); dropout(norm2(ff(x) + x)).

    value, key (B, Tk, E), query (B, Tq, E), mask -> (B, Tq, E). ff is `forward_expansion` times as wide,
    with ReLU.
    """

    def __init__(
        self,
        embed_size: int,
        heads: int,
        dropout: float = 0.1,
        forward_expansion: int = 4,
        projections: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        self.attention = SelfAttention(embed_size, heads, projections, rngs=rngs)
        self.norm1 = LayerNorm(embed_size, rngs=rngs)
        self.norm2 = LayerNorm(embed_size, rngs=rngs)
        self.ff = Sequential(
            Linear(embed_size, forward_expansion * embed_size, rngs=rngs),
            Activation("relu"),
            Linear(forward_expansion * embed_size, embed_size, rngs=rngs),
        )
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        value: Float[Array, "b k e"],
        key: Float[Array, "b k e"],
        query: Float[Array, "b q e"],
        mask: Shaped[Array, "..."] | None = None,
    ) -> Float[Array, "b q e"]:
        x = self.dropout(self.norm1(self.attention(value, key, query, mask) + query))
        return self.dropout(self.norm2(self.ff(x) + x))
