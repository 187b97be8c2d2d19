"""Vector quantisation with a codebook, trained or a moving average of the vectors."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn import functional as F


class Quantized(NamedTuple):
    """The output of a quantiser.

    values: the nearest codes (B, C, H, W), with the gradient of the vectors they replace.
    loss: commitment, and without moving averages the codebook's loss.
    ids: the codes' indices (B, H * W), row by row.
    perplexity, usage: exp of the entropy of the codes in this batch; the fraction of codes that it uses.
    """

    values: Tensor
    loss: Tensor
    ids: Tensor
    perplexity: Tensor
    usage: Tensor


class VectorQuantizer(Module):
    """Replaces each pixel's vector by the nearest of `codes` (van den Oord et al. 2017, arXiv:1711.00937).

    (B, dim, H, W) -> Quantized. Gradients pass straight through; `commitment` weighs the encoder's loss.

    ema: the codebook `embed` (codes, dim) is the moving average of the vectors assigned to each code (their
        appendix A.1): in train mode `cluster_size` and `embed_avg` decay by `decay` and take in the batch;
        `eps` smooths the counts. Without it the codebook is trained by its distance to the vectors.
    revive_below: in train mode codes whose cluster_size falls below it become vectors of the batch, which
        `revival` (codes,) in [0, 1) picks; 0 revives none.

    Revival without ema, or in train mode without `revival`, is a ValueError.
    """

    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        ema: bool = True,
        decay: float = 0.99,
        eps: float = 1e-5,
        revive_below: float = 0.0,
    ):
        super().__init__()
        if revive_below > 0 and not ema:
            raise ValueError("revive_below needs ema=True: without it there are no counts")
        self.codes, self.commitment, self.ema = codes, commitment, ema
        self.decay, self.eps, self.revive_below = decay, eps, revive_below
        embed = torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes)
        if ema:
            self.register_buffer("embed", embed)
            self.register_buffer("cluster_size", torch.ones(codes))
            self.register_buffer("embed_avg", embed.clone())
        else:
            self.embed = Parameter(embed)

    def forward(self, x: Tensor, revival: Tensor | None = None) -> Quantized:
        rows = x.movedim(1, -1).flatten(0, -2)
        distances = self.embed.square().sum(1) - 2 * rows.detach() @ self.embed.T
        ids = distances.argmin(1)
        values = self.embed[ids]
        loss = self.commitment * (rows - values.detach()).square().mean()
        if not self.ema:
            loss = loss + (values - rows.detach()).square().mean()
        one_hot = F.one_hot(ids, self.codes).to(rows.dtype)
        if self.ema and self.training:
            self._update_codebook(rows.detach(), one_hot, revival)
        frequency = one_hot.mean(0)
        perplexity = torch.exp(-(frequency * (frequency + 1e-10).log()).sum())
        usage = (frequency > 0).to(rows.dtype).mean()
        straight_through = rows + (values - rows).detach()
        image = straight_through.view(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)
        return Quantized(image, loss, ids.view(x.shape[0], -1), perplexity, usage)

    def lookup(self, ids: Tensor) -> Tensor:
        """The codes of a map of indices: (B, H, W) -> (B, dim, H, W)."""
        return self.embed[ids].movedim(-1, 1)

    def _update_codebook(self, rows: Tensor, one_hot: Tensor, revival: Tensor | None) -> None:
        """Update the moving averages by the batch, and the codebook with them."""
        size = self.decay * self.cluster_size + (1 - self.decay) * one_hot.sum(0)
        average = self.decay * self.embed_avg + (1 - self.decay) * one_hot.T @ rows
        total = size.sum()
        smoothed = (size + self.eps) / (total + self.codes * self.eps) * total
        embed = average / smoothed[:, None]
        if self.revive_below > 0:
            if revival is None:
                raise ValueError("revive_below needs the call's revival: uniform numbers, one for each code")
            dead = size < self.revive_below
            picked = rows[(revival.detach() * len(rows)).long().clamp(0, len(rows) - 1)]
            embed = torch.where(dead[:, None], picked, embed)
            average = torch.where(dead[:, None], picked * self.revive_below, average)
            size = size.clamp(min=self.revive_below)
        self.cluster_size.copy_(size)
        self.embed_avg.copy_(average)
        self.embed.copy_(embed)
