"""A Transformer for classifying sequences (Vaswani et al. 2017, arXiv:1706.03762).

Written as the PyTorch file beside it is.
"""

import math

from flax import nnx
from jax import Array as Tensor
from jax.numpy import arange, cos, exp, sin, stack

from jaxarch import nn
from jaxarch.nn import functional as F


class PositionalEncoding(nn.Module):
    def __init__(self, d_model: int, dropout: float = 0.1, max_len: int = 64, *, rngs: nnx.Rngs):
        super().__init__()
        self.dropout = nn.Dropout(p=dropout, rngs=rngs)
        position = arange(0.0, max_len)[:, None]
        frequency = exp(arange(0.0, d_model, 2) * (-math.log(10000.0) / d_model))
        angles = position * frequency
        self.pe = nn.Buffer(stack((sin(angles), cos(angles)), -1).reshape(max_len, 1, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pe[: x.shape[0]]
        return self.dropout(x)


class TransformerModel(nn.Module):
    def __init__(
        self,
        ntoken: int,
        d_model: int,
        nhead: int,
        d_hid: int,
        nlayers: int,
        n_classes: int,
        dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__()
        self.d_model = d_model
        self.encoder = nn.Embedding(ntoken, d_model, rngs=rngs)
        self.pos_encoder = PositionalEncoding(d_model, dropout, rngs=rngs)
        encoder_layer = nn.TransformerEncoderLayer(d_model, nhead, d_hid, dropout, F.gelu, rngs=rngs)
        self.transformer_encoder = nn.TransformerEncoder(encoder_layer, nlayers, enable_nested_tensor=False)
        self.pool = nn.MultiheadAttention(d_model, nhead, add_bias_kv=True, rngs=rngs)
        self.decoder = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, d_hid, rngs=rngs),
            nn.PReLU(),
            nn.Linear(d_hid, n_classes, rngs=rngs),
        )

    def forward(self, src: Tensor) -> tuple:
        """(T, B) tokens -> (B, n_classes), and the weights (B, 1, T + 1) of the last token's attention."""
        x = self.pos_encoder(self.encoder(src) * math.sqrt(self.d_model))
        mask = nn.Transformer.generate_square_subsequent_mask(src.shape[0])
        x = self.transformer_encoder(x, mask)
        last, weights = self.pool(x[-1:], x, x)
        return self.decoder(last[0]), weights
