"""The transformer block, post-norm and pre-norm."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Dropout, LayerNorm, Linear, Module, Sequential

from torchref.nn.activation import Activation, Function
from torchref.nn.attention import AttentionConfig, Cache, MultiHeadAttention, count_heads


@dataclass(frozen=True)
class TransformerBlockConfig(AttentionConfig):
    """What `TransformerBlock` does beyond its sizes, dropout and activation; positions as AttentionConfig.

    norm_first: pre-norm, x + f(norm(x)) (Xiong et al. 2020, arXiv:2002.04745), instead of norm(x + f(x)).
    ff_dropout: of the feed-forward network; None is the block's.
    attention_type, max_relative_position, use_flash_attention: see MultiHeadAttention.
    use_layer_norm, use_residual: without them there is no norm, and nothing is added.
    """

    norm_first: bool = False
    ff_dropout: float | None = None
    attention_type: str = "standard"
    max_relative_position: int = 32
    use_flash_attention: bool = False
    use_layer_norm: bool = True
    use_residual: bool = True


class TransformerBlock(Module):
    """Self-attention and a feed-forward network, each with a residual (Vaswani et al. 2017, arXiv:1706.03762).

    x (B, T, D) -> the same, with `cache` also the cache. `dropout` acts on the attention weights and on both
    branches. `use_relative_pos` is attention_type="relative". d_ff is 4 * d_model by default; num_heads is another
    name of n_heads.

    `use_relative_pos` with another attention type is a ValueError.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int | None = None,
        d_ff: int | None = None,
        dropout: float = 0.1,
        activation: str | Function = "gelu",
        use_relative_pos: bool = False,
        config: TransformerBlockConfig | None = None,
        num_heads: int | None = None,
    ):
        super().__init__()
        config = config or TransformerBlockConfig()
        n_heads, kind = count_heads(n_heads, num_heads), config.attention_type
        d_ff = 4 * d_model if d_ff is None else d_ff
        if use_relative_pos and kind not in ("standard", "relative"):
            raise ValueError(f"use_relative_pos contradicts attention_type={kind!r}: set one")
        self.norm_first, self.use_residual = config.norm_first, config.use_residual
        self.attention = MultiHeadAttention(
            d_model,
            n_heads,
            dropout,
            "relative" if use_relative_pos else kind,
            config.max_relative_position,
            config.use_flash_attention,
            config,
        )
        self.norm1 = LayerNorm(d_model) if config.use_layer_norm else None
        self.ff = Sequential(
            Linear(d_model, d_ff),
            Activation(activation),
            Dropout(dropout if config.ff_dropout is None else config.ff_dropout),
            Linear(d_ff, d_model),
        )
        self.norm2 = LayerNorm(d_model) if config.use_layer_norm else None
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor | tuple[Tensor, Cache]:
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

    def _join(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.dropout(y) if self.use_residual else self.dropout(y)


def normed(norm: LayerNorm | None, x: Tensor) -> Tensor:
    """norm(x), or x where there is no norm."""
    return x if norm is None else norm(x)
