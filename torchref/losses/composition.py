"""Losses that combine others: distillation, and several tasks at once."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref.losses.classification import cross_entropy
from torchref.losses.numerics import finite, reduce
from torchref.losses.regression import kl_div


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
) -> Tensor:
    """alpha T^2 KL(teacher | student) at temperature T + (1 - alpha) cross-entropy (Hinton et al. 2015).

    Means over the labels that are not ignored. The teacher gets no gradient.
    """
    student = F.log_softmax(finite(student_logits) / temperature, -1)
    teacher = F.log_softmax(finite(teacher_logits.detach()) / temperature, -1)
    valid = labels != ignore_index
    divergence = kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    soft = reduce(torch.where(valid, divergence, 0), "mean", valid.sum()) * temperature**2
    hard = cross_entropy(student_logits, labels, ignore_index=ignore_index)
    return alpha * soft + (1 - alpha) * hard


def multi_task_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """The sum of named losses, each times its weight; all 1 if None. Names that differ are a ValueError."""
    _same_names(losses, losses if weights is None else weights)
    return torch.stack([x * (1.0 if weights is None else weights[k]) for k, x in losses.items()]).sum()


def uncertainty_loss(losses: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]) -> Tensor:
    """The sum of (exp(-s) loss + s) / 2 with a learned s = log variance for each task (Kendall et al. 2018)."""
    _same_names(losses, log_variances)
    parts = [(torch.exp(-log_variances[k]) * x + log_variances[k]) / 2 for k, x in losses.items()]
    return torch.stack(parts).sum()


def _same_names(losses: Mapping[str, Tensor], others: Mapping[str, object]) -> None:
    if not losses:
        raise ValueError("there are no losses to add")
    if differ := sorted(set(losses) ^ set(others)):
        raise ValueError(f"the names of losses and weights differ: {', '.join(differ)}")
