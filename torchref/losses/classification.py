"""Losses of class labels: cross-entropy and focal losses, of one label or of independent ones."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref.losses.numerics import finite, lowest, reduce


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.cross_entropy with the classes last: logits (*b, c), labels (*b) or soft (*b, c).

    The mean is over the labels that are not ignored, each by its class's `weight`; over all rows for soft targets,
    of which none is ignored.
    """
    soft = labels.is_floating_point()
    if soft and ignore_index != -100:
        raise ValueError("ignore_index has no meaning with soft targets: leave it out")
    loss = F.cross_entropy(
        finite(logits).flatten(0, -2),
        labels.flatten(0, -2) if soft else labels.flatten(),
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    ).reshape(logits.shape[:-1])
    if soft:
        return reduce(loss, reduction)
    valid = labels != ignore_index
    label_weight = valid if weight is None else torch.where(valid, weight[torch.where(valid, labels, 0)], 0)
    return reduce(loss, reduction, label_weight.sum())


def label_smoothing_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with targets (1 - smoothing) one-hot + smoothing / classes (Szegedy et al. 2016)."""
    return cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction
    )


def binary_cross_entropy_with_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.binary_cross_entropy_with_logits; `weight` and `pos_weight` broadcast."""
    x = finite(logits)
    y = targets.to(x.dtype)
    loss = F.binary_cross_entropy_with_logits(x, y, weight=weight, pos_weight=pos_weight, reduction="none")
    return reduce(loss, reduction)


def binary_cross_entropy(probabilities: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.binary_cross_entropy: logarithms are at least -100. The targets get no gradient."""
    y = targets.detach().to(probabilities.dtype)
    return reduce(F.binary_cross_entropy(probabilities, y, reduction="none"), reduction)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """alpha (1 - p)^gamma cross-entropy, with p the probability of the label (Lin et al. 2017).

    `alpha` is a number or one for each class; the mean is over the labels that are not ignored.
    """
    log_p = F.log_softmax(finite(logits), -1)
    valid = labels != ignore_index
    index = torch.where(valid, labels, 0)[..., None]
    others = log_p.masked_fill(torch.arange(log_p.shape[-1]) == index, lowest(log_p.dtype))
    factor = torch.as_tensor(alpha, dtype=log_p.dtype)
    factor = factor[index[..., 0]] if factor.ndim else factor
    # The logarithm of 1 - p has a gradient at p = 1, where the power of 1 - p may have none.
    modulated = factor * torch.exp(gamma * torch.logsumexp(others, -1))
    loss = cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return reduce(torch.where(valid, modulated, 0) * loss, reduction, valid.sum())


def binary_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """alpha_t (1 - p_t)^gamma cross-entropy on targets 0 or 1 (Lin et al. 2017).

    `alpha` weighs the positives and 1 - alpha the negatives; a negative `alpha` weighs neither.
    """
    x = finite(logits)
    y = targets.to(x.dtype)
    factor = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else torch.ones_like(y)
    signed = x * (2 * y - 1)
    loss = torch.exp(gamma * F.logsigmoid(-signed)) * -F.logsigmoid(signed)
    return reduce(factor * loss, reduction)
