"""Transformer encoder with relative positions (Vaswani et al. 2017, Shaw et al. 2018)."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


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
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = nn.TextEncoder(
            vocab_size,
            d_model,
            n_layers,
            n_heads,
            d_ff,
            max_len,
            dropout,
            activation,
            use_relative_pos,
            rngs=rngs,
        )

    def __call__(self, input_ids: Int[Array, "b t"], mask: Array | None = None) -> Float[Array, "b t d"]:
        return self.encoder(input_ids, mask)
