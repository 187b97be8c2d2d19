"""Transformer encoder with relative positions (Vaswani et al. 2017, Shaw et al. 2018)."""

from torch import Tensor

from torchref import nn


class CustomTransformer(nn.Module):
    """ids (B, T), mask (B, T) or (B, T, T), True where a token may be attended to -> (B, T, d_model).

    Errors: `nn.TextEncoder`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int = 2048,
        max_len: int = 5000,
        dropout: float = 0.1,
        activation: str | nn.Function = "gelu",
        use_relative_pos: bool = True,
    ):
        super().__init__()
        self.encoder = nn.TextEncoder(
            vocab_size, d_model, n_layers, n_heads, d_ff, max_len, dropout, activation, use_relative_pos
        )

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids, mask)
