"""Transformer encoder, then convolutions of several widths over its states.

Vaswani et al. 2017, arXiv:1706.03762; Kim 2014, arXiv:1408.5882.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import UsageError


class TransformerCNN(nn.Module):
    """ids (B, T), mask (B, T) or (B, T, T), True where a token may be attended to -> logits (B, num_classes).

    Each layer of the CNN runs every kernel size in parallel, with ReLU and dropout, `cnn_hidden_dims`
    channels each, concatenated. Then the maximum over the real tokens. Padding is zero before every
    convolution, so it never matters. Relative positions, as in CustomTransformer.

    Raises:
        UsageError: a CNN without layers or kernels.
        DataError: as `nn.TextEncoder`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int = 2048,
        cnn_hidden_dims: Sequence[int] = (128, 256),
        cnn_kernel_sizes: Sequence[int] = (3, 4, 5),
        num_classes: int = 2,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        if not cnn_hidden_dims or not cnn_kernel_sizes:
            raise UsageError("cnn_hidden_dims and cnn_kernel_sizes need at least one number each")
        self.encoder = nn.TextEncoder(
            vocab_size, d_model, n_layers, n_heads, d_ff, dropout=dropout, rngs=rngs
        )
        self.convs: Any = nn.ModuleList()
        width = d_model
        for channels in cnn_hidden_dims:
            self.convs.append(
                nn.ParallelConv1d(
                    width, channels, cnn_kernel_sizes, dropout=dropout, batch_norm=False, rngs=rngs
                )
            )
            width = self.convs[-1].out_channels
        self.pooling = nn.Pooling("max", width, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.classifier = nn.Linear(width, num_classes, rngs=rngs)

    def __call__(self, input_ids: Int[Array, "b t"], mask: Array | None = None) -> Float[Array, "b c"]:
        x = self.encoder(input_ids, mask)
        real = nn.valid_steps(input_ids, nn.token_mask(mask))[..., None]
        for layer in self.convs:
            x = layer(jnp.where(real, x, 0))
        return self.classifier(self.dropout(self.pooling(x, mask)))
