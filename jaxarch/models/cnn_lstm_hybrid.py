"""Convolutions over embedded words, then an LSTM: Zhou et al. 2015, arXiv:1511.08630."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class CNNLSTMHybrid(nn.Module):
    """ids (B, T), lengths (B,) in [1, T] or None -> (B, num_classes), from the LSTM's final states.

    Steps past the length are zero before every convolution, like its own padding, and there is no batch norm,
    whose statistics would count them: a padded batch gives what each sequence gives alone.

    Raises:
        DataError: outside jit, an id or a length out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dims: Sequence[int],
        kernel_sizes: Sequence[int],
        lstm_hidden_size: int,
        num_classes: int,
        dropout: float = 0.1,
        bidirectional: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        self.embedding = nn.Embedding(vocab_size, embed_dim, rngs=rngs)
        self.layers: nn.ModuleList = nn.ModuleList()
        width = embed_dim
        for hidden_dim in hidden_dims:
            layer = nn.ParallelConv1d(
                width, hidden_dim, kernel_sizes, dropout=dropout, batch_norm=False, rngs=rngs
            )
            self.layers.append(layer)
            width = layer.out_channels
        self.lstm = nn.LSTM(width, lstm_hidden_size, batch_first=True, bidirectional=bidirectional, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.fc = nn.Linear(lstm_hidden_size * (2 if bidirectional else 1), num_classes, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b t"], lengths: Int[Array, " b"] | None = None
    ) -> Float[Array, "b o"]:
        x = self.embedding(ids)
        valid = None if lengths is None else nn.length_mask(lengths, ids.shape[1])[..., None]
        for layer in self.layers:
            x = x if valid is None else jnp.where(valid, x, 0)
            x = layer(x)
        _, (final, _) = self.lstm(x, lengths=lengths)
        return self.fc(self.dropout(jnp.concatenate(list(final), -1)))
