"""Losses of numbers and of distributions, element by element."""

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref.losses.numerics import finite, reduce


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.mse_loss: the squared difference, without a half."""
    return reduce(F.mse_loss(input, target, reduction="none"), reduction)


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.l1_loss: the gradient is 0 where both are equal."""
    return reduce(F.l1_loss(input, target, reduction="none"), reduction)


def smooth_l1_loss(input: Tensor, target: Tensor, *, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.smooth_l1_loss: Huber's loss over `beta`; the absolute difference for beta 0."""
    return reduce(F.smooth_l1_loss(input, target, beta=beta, reduction="none"), reduction)


def huber_loss(input: Tensor, target: Tensor, *, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.huber_loss: half the square up to `delta`, then a line (Huber 1964)."""
    return reduce(F.huber_loss(input, target, delta=delta, reduction="none"), reduction)


def kl_div(input: Tensor, target: Tensor, *, log_target: bool = False, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.kl_div of log-probabilities `input` against probabilities `target`.

    "mean" is over all elements, "batchmean" the sum over the size of the first dim. A target of 0 gets no gradient.
    """
    y = finite(target) if log_target else torch.where(target == 0, 0, target)
    loss = F.kl_div(finite(input), y, log_target=log_target, reduction="none")
    return reduce(loss, "mean", loss.shape[0]) if reduction == "batchmean" else reduce(loss, reduction)
