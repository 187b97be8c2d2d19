"""How losses are summed and averaged, and how infinite values are bounded."""

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")


def reduce(values: Tensor, reduction: str = "mean", count: Tensor | int | None = None) -> Tensor:
    """The values ("none"), their sum, or the sum over `count`, which is their number if None; 0 if it is 0.

    An unknown reduction is a ValueError.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        count = torch.as_tensor(values.numel() if count is None else count)
        return values.sum() / torch.where(count == 0, 1, count)
    raise ValueError(f"unknown reduction {reduction!r}: known: {', '.join(REDUCTIONS)}")


def finite(x: Tensor) -> Tensor:
    """Infinite values as very large finite ones."""
    return x.clamp(lowest(x.dtype), -lowest(x.dtype))


def lowest(dtype: torch.dtype) -> float:
    """A number so low that its exponential is 0, with room for sums and differences."""
    return torch.finfo(dtype).min / 1024
