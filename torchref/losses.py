"""Losses with the names and reductions of `jaxarch.train.losses`."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """torch's cross_entropy with the classes last: the mean over labels that count; 0 if none counts.

    logits (..., C), labels (...) -> scalar.
    """
    total = F.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / (labels != ignore_index).sum().clamp(min=1)
