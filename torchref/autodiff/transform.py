"""Transformations of gradients between the backward pass and the optimizer: clipping, accumulation."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


class GradientClipper:
    """Clip each entry to [-max_value, max_value], then all together to the norm max_norm.

    Raises:
        ValueError: neither is given, or one is not positive.
    """

    def __init__(self, max_norm: float | None = None, max_value: float | None = None):
        given = [v for v in (max_norm, max_value) if v is not None]
        if not given or min(given) <= 0:
            raise ValueError(f"max_norm {max_norm} or max_value {max_value} must be a positive number")
        self.max_norm, self.max_value = max_norm, max_value

    def clip(self, parameters: Iterable[Tensor]) -> None:
        """Clip the parameters' gradients in place."""
        parameters = list(parameters)
        if self.max_value is not None:
            clip_grad_value_(parameters, self.max_value)
        if self.max_norm is not None:
            clip_grad_norm_(parameters, self.max_norm)


class GradientAccumulator:
    """Step with the mean of `every` gradients.

    Raises:
        ValueError: `every` is not positive.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, every: int):
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.optimizer, self.every, self.count = optimizer, every, 0

    def backward(self, loss: Tensor) -> bool:
        """Add the loss's gradient to those before; True if that made the optimizer step."""
        (loss / self.every).backward()
        self.count += 1
        if self.count % self.every:
            return False
        self.optimizer.step()
        self.optimizer.zero_grad()
        return True
