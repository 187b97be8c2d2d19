"""torch.nn's own attention and encoder layer: queries, keys and values in one packed projection.

Masks are True where attention is allowed (torch.nn's are True where it is blocked), and a row whose keys are
all masked is the mean of all values, where torch.nn's is NaN. Sequences are batch first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm, Linear, Module, Parameter, init
from torch.nn import functional as F

from torchref.nn.activation import Function, get_activation
from torchref.nn.hub import attend


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention with its names and initialisers; Vaswani et al. 2017, arXiv:1706.03762.

    query (B, Tq, D), key and value (B, Tk, D), by default the query, -> (B, Tq, D); with `return_weights`
    also the weights after dropout (B, H, Tq, Tk). The mask is (B, Tk) or (B, Tq, Tk).

    Heads that do not divide the width and masks that do not fit are ValueErrors in the call.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = Parameter(init.xavier_uniform_(torch.empty(3 * embed_dim, embed_dim)))
        self.in_proj_bias = None
        if bias:
            self.in_proj_bias = Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        key = query if key is None else key
        value = key if value is None else value
        projections = self.in_proj_weight.chunk(3)
        q, k, v = (F.linear(x, w) for x, w in zip((query, key, value), projections, strict=True))
        if self.in_proj_bias is not None:
            q, k, v = (x + b for x, b in zip((q, k, v), self.in_proj_bias.chunk(3), strict=True))
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
    ):
        super().__init__()
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(d_model, nhead, dropout)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm1 = LayerNorm(d_model, layer_norm_eps)
        self.norm2 = LayerNorm(d_model, layer_norm_eps)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = get_activation(activation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.dropout1(self.self_attn(self.norm1(x), mask=mask))
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout1(self.self_attn(x, mask=mask)))
        return self.norm2(x + self._feed_forward(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
