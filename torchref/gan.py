"""Regularisers of GAN training: gradient penalties and feature matching."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """WGAN-GP's (norm of the critic's input gradient - 1)^2, on average (Gulrajani et al. 2017, arXiv:1704.00028).

    Taken between real and fake (B, ...), at real + mix (fake - real) with mix (B,) in [0, 1]. Where the
    gradient is zero the derivative of its norm is 0, as in torch: such a row counts in the value and has no
    gradient.
    """
    x = real + mix.view(-1, *(1,) * (real.ndim - 1)) * (fake - real)
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(2, 1) - 1).square().mean()


def real_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """R1: the squared norm of the critic's input gradient at real (B, ...), on average (Mescheder et al. 2018,
    arXiv:1801.04406)."""
    x = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()


def feature_matching(real: Tensor, fake: Tensor) -> Tensor:
    """The squared distance of the mean features (B, F) (Salimans et al. 2016, arXiv:1606.03498, section 3.1)."""
    return (real.mean(0) - fake.mean(0)).square().sum()
