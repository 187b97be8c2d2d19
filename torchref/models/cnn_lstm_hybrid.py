"""Convolutions over embedded words, then an LSTM: Zhou et al. 2015, arXiv:1511.08630."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchref import nn


class CNNLSTMHybrid(nn.Module):
    """ids (B, T), lengths (B,) in [1, T] or None -> (B, num_classes), from the LSTM's final states.

    Steps past the length are zero before every convolution, like its own padding, and there is no batch norm,
    whose statistics would count them: a padded batch gives what each sequence gives alone.
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
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.layers = nn.ModuleList()
        width = embed_dim
        for hidden_dim in hidden_dims:
            layer = nn.ParallelConv1d(width, hidden_dim, kernel_sizes, dropout=dropout, batch_norm=False)
            self.layers.append(layer)
            width = layer.out_channels
        self.lstm = nn.LSTM(width, lstm_hidden_size, batch_first=True, bidirectional=bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(lstm_hidden_size * (2 if bidirectional else 1), num_classes)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)
        past = None if lengths is None else ~nn.length_mask(lengths, ids.shape[1])[..., None]
        for layer in self.layers:
            x = x if past is None else x.masked_fill(past, 0)
            x = layer(x.transpose(1, 2)).transpose(1, 2)
        _, (final, _) = self.lstm(x, lengths=lengths)
        return self.fc(self.dropout(torch.cat(list(final), -1)))
