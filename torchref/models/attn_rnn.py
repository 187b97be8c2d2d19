"""A GRU pooled by attention over its steps: Cho et al. 2014; Bahdanau et al. 2014."""

import torch
from torch import Tensor

from torchref import nn


class AttnRNN(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, hidden_size).

    With `return_attention` also the weights (B, T), zero from the length on.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.rnn = nn.GRU(input_size, hidden_size, batch_first=True)
        self.attn = nn.Linear(hidden_size, 1)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        hidden, _ = self.rnn(x, lengths=lengths)
        scores = self.attn(hidden)[..., 0]
        if lengths is not None:
            valid = nn.length_mask(lengths, x.shape[1])
            scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        pooled = torch.einsum("bt,bth->bh", weights, hidden)
        return (pooled, weights) if return_attention else pooled
