"""The transformer block, post-norm and pre-norm."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn.activation import Activation, Function
from jaxarch.nn.attention import Cache, MultiHeadAttention
from jaxarch.nn.containers import Sequential
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.norm import LayerNorm


class TransformerBlock(Module):
    """Self-attention and a feed-forward net, each with a residual (Vaswani et al. 2017, arXiv:1706.03762).

    x (B, T, D) -> the same, with `cache` also the cache. Post-norm, guide D's, is norm(x + f(x)); with
    `norm_first` x + f(norm(x)) (Xiong et al. 2020, arXiv:2002.04745). `dropout` acts on the attention
    weights and on both branches, `ff_dropout` (None: the same) inside ff. `use_relative_pos` is
    attention_type="relative". After `ff_dropout` come MultiHeadAttention's arguments, then two switches
    of guide B: without `use_layer_norm` there is no norm, without `use_residual` nothing is added.

    Raises:
        UsageError: as MultiHeadAttention; `use_relative_pos` with another attention type.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        dropout: float = 0.1,
        activation: str | Function = "gelu",
        use_relative_pos: bool = False,
        norm_first: bool = False,
        ff_dropout: float | None = None,
        attention_type: str = "standard",
        max_relative_position: int = 32,
        use_flash_attention: bool = False,
        position: str = "none",
        causal: bool = False,
        max_len: int = 5000,
        rope_layout: str = "interleaved",
        use_learnable: bool = False,
        use_layer_norm: bool = True,
        use_residual: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        if use_relative_pos and attention_type not in ("standard", "relative"):
            raise UsageError(f"use_relative_pos contradicts attention_type={attention_type!r}: set one")
        self.norm_first, self.use_residual = norm_first, use_residual
        self.attention = MultiHeadAttention(
            d_model,
            n_heads,
            dropout,
            "relative" if use_relative_pos else attention_type,
            max_relative_position,
            use_flash_attention,
            position,
            causal,
            max_len,
            rope_layout,
            use_learnable,
            rngs=rngs,
        )
        self.norm1 = LayerNorm(d_model, rngs=rngs) if use_layer_norm else nnx.data(None)
        self.ff = Sequential(
            Linear(d_model, d_ff, rngs=rngs),
            Activation(activation),
            Dropout(dropout if ff_dropout is None else ff_dropout, rngs=rngs),
            Linear(d_ff, d_model, rngs=rngs),
        )
        self.norm2 = LayerNorm(d_model, rngs=rngs) if use_layer_norm else nnx.data(None)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Array | None = None, cache: Cache | None = None
    ) -> Float[Array, "b t d"] | tuple:
        y: Any = self.attention(normed(self.norm1, x) if self.norm_first else x, mask=mask, cache=cache)
        if cache is not None:
            y, cache = y
        x = self._join(x, y)
        if self.norm_first:
            x = self._join(x, self.ff(normed(self.norm2, x)))
        else:
            x = normed(self.norm1, x)
            x = normed(self.norm2, self._join(x, self.ff(x)))
        return x if cache is None else (x, cache)

    def _join(self, x: Float[Array, "b t d"], y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return x + self.dropout(y) if self.use_residual else self.dropout(y)


def normed(norm: LayerNorm | None, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """norm(x), or x where there is no norm."""
    return x if norm is None else norm(x)
