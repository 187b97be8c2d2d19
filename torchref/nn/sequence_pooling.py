"""A sequence as one vector: mean, max, first token, or a learned weighting."""

import torch
from torch import Tensor
from torch.nn import Linear, Module

from torchref.nn.masks import token_mask, valid_steps

POOLINGS = ("mean", "max", "cls", "attention")


class Pooling(Module):
    """(B, T, d_model), mask (B, T) True where valid -> (B, d_model); masked steps never count.

    Of a mask (B, T, T) those count that some step may attend to.

    "mean" and "max" over the valid steps, zero where there is none; "cls" is the first step, masked or not;
    "attention" the sum weighted by softmax(linear(x)) (Lin et al. 2017, arXiv:1703.03130, one hop), the mean
    of all steps where none is valid. An unknown strategy and a mask of another shape are ValueErrors.
    """

    def __init__(self, strategy: str, d_model: int):
        super().__init__()
        if strategy not in POOLINGS:
            raise ValueError(f"unknown pooling {strategy!r}: known: {', '.join(POOLINGS)}")
        self.strategy = strategy
        self.attn = Linear(d_model, 1) if strategy == "attention" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.strategy == "cls":
            return x[:, 0]
        valid = valid_steps(x, token_mask(mask))
        if self.attn is not None:
            scores = self.attn(x)[..., 0].masked_fill(~valid, torch.finfo(x.dtype).min)
            return torch.einsum("bt,btd->bd", scores.softmax(-1), x)
        valid_features, some = valid[..., None], valid.any(1)[:, None]
        if self.strategy == "max":
            first = x.masked_fill(~valid_features, torch.finfo(x.dtype).min).argmax(1, keepdim=True)
            return x.gather(1, first)[:, 0].masked_fill(~some, 0)
        return x.masked_fill(~valid_features, 0).sum(1) / valid_features.sum(1).clamp(min=1).to(x.dtype)
