"""torch.nn's own attention and encoder layer: queries, keys and values in one packed projection.

Masks are True where attention is allowed (torch.nn's are True where it is blocked), and a row whose keys are
all masked is the mean of all values, where torch.nn's is NaN. Sequences are batch first.
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.nn import init
from jaxarch.nn.activation import Function, get_activation
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.hub import attend
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module, Perm, from_torch_layout
from jaxarch.nn.norm import LayerNorm


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention with its names and initialisers; Vaswani et al. 2017, arXiv:1706.03762.

    query (B, Tq, D), key and value (B, Tk, D), by default the query, -> (B, Tq, D); with `return_weights`
    also the weights after dropout (B, H, Tq, Tk). The mask is (B, Tk) or (B, Tq, Tk).

    Raises:
        UsageError: in the call, heads that do not divide the width.
        DataError: in the call, a mask that does not fit.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"in_proj_weight": (1, 0)}

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, *, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        weight = init.xavier(rngs.params(), (3 * embed_dim, embed_dim))
        self.in_proj_weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["in_proj_weight"]))
        self.in_proj_bias = nnx.data(None)
        if bias:
            self.in_proj_bias = nnx.Param(jnp.zeros(3 * embed_dim, init.float_dtype()))
        self.out_proj = Linear(embed_dim, embed_dim, bias, rngs=rngs)
        if self.out_proj.bias is not None:
            self.out_proj.bias[...] = jnp.zeros(embed_dim, init.float_dtype())
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "b q d"],
        key: Float[Array, "b k d"] | None = None,
        value: Float[Array, "b k d"] | None = None,
        mask: Shaped[Array, "..."] | None = None,
        return_weights: bool = False,
    ) -> Float[Array, "b q d"] | tuple[Float[Array, "b q d"], Float[Array, "b h q k"]]:
        key = query if key is None else key
        value = key if value is None else value
        projections = jnp.split(self.in_proj_weight[...], 3, 1)
        q, k, v = (x @ w for x, w in zip((query, key, value), projections, strict=True))
        if self.in_proj_bias is not None:
            q, k, v = (x + b for x, b in zip((q, k, v), jnp.split(self.in_proj_bias[...], 3), strict=True))
        y, weights, _ = attend(q, k, v, self.num_heads, mask, self.dropout)
        y = self.out_proj(y)
        return (y, weights) if return_weights else y


class TransformerEncoderLayer(Module):
    """torch.nn.TransformerEncoderLayer with its names, batch first. x (B, T, D), mask -> (B, T, D)."""

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Function = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(d_model, nhead, dropout, rngs=rngs)
        self.linear1 = Linear(d_model, dim_feedforward, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.linear2 = Linear(dim_feedforward, d_model, rngs=rngs)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, rngs=rngs)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, rngs=rngs)
        self.dropout1 = Dropout(dropout, rngs=rngs)
        self.dropout2 = Dropout(dropout, rngs=rngs)
        self.activation = get_activation(activation)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> Float[Array, "b t d"]:
        if self.norm_first:
            x = x + self.dropout1(self.self_attn(self.norm1(x), mask=mask))
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout1(self.self_attn(x, mask=mask)))
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
