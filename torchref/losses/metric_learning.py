"""Losses of embeddings, by the distances between examples of one class and of different ones."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref.losses.numerics import finite, lowest, reduce

MININGS = ("hard", "semi_hard")


def contrastive_loss(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020); NT-Xent (Chen et al. 2020) where a label occurs twice.

    The mean over the anchors that have a positive of the mean over their positives of
    -log softmax(similarity / temperature), the anchor itself left out; similarity is the cosine.
    """
    x = embeddings
    unit = F.normalize(x, dim=-1)
    diagonal = torch.eye(x.shape[0], dtype=torch.bool)
    similarity = finite(unit @ unit.T / temperature).masked_fill(diagonal, lowest(x.dtype))
    log_p = F.log_softmax(similarity, -1)
    positive = (labels[:, None] == labels) & ~diagonal
    count = positive.sum(-1)
    loss = -torch.where(positive, log_p, 0).sum(-1) / count.clamp(min=1)
    return reduce(loss, "mean", (count > 0).sum())


def pairwise_contrastive_loss(
    first: Tensor,
    second: Tensor,
    same: Tensor,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """same * distance^2 + (1 - same) * max(margin - distance, 0)^2 (Hadsell et al. 2006)."""
    distance = F.pairwise_distance(first, second)
    y = same.to(distance.dtype)
    return reduce(y * distance**2 + (1 - y) * F.relu(margin - distance) ** 2, reduction)


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.triplet_margin_loss of Euclidean distances; `swap` as in Balntas et al. 2016."""
    loss = F.triplet_margin_loss(anchor, positive, negative, margin=margin, swap=swap, reduction="none")
    return reduce(loss, reduction)


def mined_triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: float = 1.0, mining: str = "hard"
) -> Tensor:
    """Triplets mined from the batch: max(margin + d(anchor, positive) - d(anchor, negative), 0).

    "hard" (Hermans et al. 2017): each anchor with its farthest positive and its nearest negative; the mean over
    the anchors that have both. "semi_hard" (Schroff et al. 2015): each pair of anchor and positive with
    the nearest negative farther than the positive, or the farthest negative if none is; the mean over the
    pairs whose anchor has a negative. Equal distances share the gradient.
    """
    x = embeddings
    distance = (x[:, None] - x[None]).norm(dim=-1)
    largest = torch.finfo(x.dtype).max
    same_label = labels[:, None] == labels
    positive = same_label & ~torch.eye(x.shape[0], dtype=torch.bool)
    if x.shape[0] == 0:
        return x.sum()
    if mining == "hard":
        valid = positive.any(-1) & ~same_label.all(-1)
        positive_distance = torch.where(positive, distance, -1).amax(-1)
        negative_distance = torch.where(same_label, largest, distance).amin(-1)
    elif mining == "semi_hard":
        valid = positive & ~same_label.all(-1)[:, None]
        positive_distance = distance
        is_farther = ~same_label[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest = torch.where(is_farther, distance[:, None, :], largest).amin(-1)
        farthest = torch.where(same_label, -1, distance).amax(-1)
        negative_distance = torch.where(is_farther.any(-1), nearest, farthest[:, None])
    else:
        raise ValueError(f"unknown mining {mining!r}: known: {', '.join(MININGS)}")
    loss = (margin + positive_distance - negative_distance).clamp(min=0)
    return reduce(torch.where(valid, loss, 0), "mean", valid.sum())
