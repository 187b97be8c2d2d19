"""Self-attention whose heads share their projections, and its transformer block."""

import math

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm, Linear, Module, ReLU, Sequential

from torchref.nn.masks import expand_mask

MASKED_SCORE = -1e20


class SelfAttention(Module):
    """values, keys (B, Tk, E) and query (B, Tq, E) -> (B, Tq, E).

    Every head goes through the same bias-free `Linear(head_dim, head_dim)`; scores are divided by
    sqrt(embed_size), after masked ones were set to -1e20. The mask is (B, Tk), (B, Tq, Tk) or broadcasts to
    (B, H, Tq, Tk), True = may attend; a row with every key masked is the mean of all values.
    Without `projections` the three of the heads are held and not applied. Heads that do not
    divide the width and masks that do not fit are ValueErrors.
    """

    def __init__(self, embed_size: int, heads: int, projections: bool = True):
        super().__init__()
        if embed_size % heads:
            raise ValueError(f"heads {heads} does not divide embed_size {embed_size}")
        self.embed_size, self.heads, self.head_dim = embed_size, heads, embed_size // heads
        self.projections = projections
        self.values = Linear(self.head_dim, self.head_dim, bias=False)
        self.keys = Linear(self.head_dim, self.head_dim, bias=False)
        self.queries = Linear(self.head_dim, self.head_dim, bias=False)
        self.fc_out = Linear(embed_size, embed_size)

    def forward(self, values: Tensor, keys: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        v, k, q = self._split(values), self._split(keys), self._split(query)
        if self.projections:
            v, k, q = self.values(v), self.keys(k), self.queries(q)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        mask = expand_mask(mask, tuple(scores.shape))
        scores = scores if mask is None else scores.masked_fill(~mask, MASKED_SCORE)
        weights = (scores / math.sqrt(self.embed_size)).softmax(-1).to(v.dtype)
        return self.fc_out(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(query.shape))

    def _split(self, x: Tensor) -> Tensor:
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
    ):
        super().__init__()
        self.attention = SelfAttention(embed_size, heads, projections)
        self.norm1 = LayerNorm(embed_size)
        self.norm2 = LayerNorm(embed_size)
        self.ff = Sequential(
            Linear(embed_size, forward_expansion * embed_size),
            ReLU(),
            Linear(forward_expansion * embed_size, embed_size),
        )
        self.dropout = Dropout(dropout)

    def forward(self, value: Tensor, key: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.dropout(self.norm1(self.attention(value, key, query, mask) + query))
        return self.dropout(self.norm2(self.ff(x) + x))
