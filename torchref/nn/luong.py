"""Luong's attention scores, as self-attention over the hidden states of a sequence (Luong et al. 2015)."""

import torch
from torch import Tensor
from torch.nn import Linear, Module

from torchref.nn.masks import length_mask


class LuongAttention(Module):
    """The base class of the three scores: softmax over the valid steps, weighted sum of the hidden states.

    hidden (B, T, hidden_size), mask (B, T) True where valid, lengths (B,) in [1, T]; with both, a step is
    valid if both agree -> context (B, T, hidden_size), zero at steps that are not valid. With
    `return_weights` also the weights (B, T, T), query before key.
    """

    def score(self, hidden: Tensor) -> Tensor:
        """The score of every query step (axis 1) against every key step (axis 2)."""
        raise TypeError(f"{type(self).__name__} does not define its score")

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if lengths is not None:
            valid = length_mask(lengths, hidden.shape[1])
            mask = valid if mask is None else mask & valid
        if mask is None:
            weights = self.score(hidden).softmax(-1)
        else:
            hidden = hidden.masked_fill(~mask[..., None], 0)
            scores = self.score(hidden).masked_fill(~mask[:, None], torch.finfo(hidden.dtype).min)
            weights = scores.softmax(-1).masked_fill(~(mask[:, None] & mask[..., None]), 0)
        context = weights @ hidden
        return (context, weights) if return_weights else context


class DotProductAttention(LuongAttention):
    """score(h_t, h_s) = h_t . h_s"""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def score(self, hidden: Tensor) -> Tensor:
        return hidden @ hidden.transpose(1, 2)


class GeneralAttention(LuongAttention):
    """score(h_t, h_s) = h_t . W h_s"""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.linear = Linear(hidden_size, hidden_size, bias=False)

    def score(self, hidden: Tensor) -> Tensor:
        return hidden @ self.linear(hidden).transpose(1, 2)


class ConcatAttention(LuongAttention):
    """score(h_t, h_s) = v . tanh(W [h_t; h_s]); no bias, as in the paper. Takes memory B T^2 hidden_size."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.linear = Linear(2 * hidden_size, hidden_size, bias=False)
        self.v = Linear(hidden_size, 1, bias=False)

    def score(self, hidden: Tensor) -> Tensor:
        steps = hidden.shape[1]
        query = hidden[:, :, None].expand(-1, -1, steps, -1)
        key = hidden[:, None].expand(-1, steps, -1, -1)
        return self.v(self.linear(torch.cat([query, key], -1)).tanh())[..., 0]
