"""Masks, True where an element is valid or may be attended to: checked, as booleans, in the shape a layer needs."""

import torch
from torch import Tensor


def as_bool(mask: Tensor) -> Tensor:
    """A mask of booleans, or of the numbers 1 and 0, as booleans.

    Floats other than 0 and 1, which may be meant to be added to scores, are a ValueError; while a model is
    compiled or traced the values are not checked.
    """
    if mask.is_floating_point() and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        others = mask[(mask != 0) & (mask != 1)]
        if others.numel():
            raise ValueError(
                f"a mask must be 1 where attention is allowed and 0 elsewhere, it holds {others[0].item()}:"
                " give booleans, for one that is added to scores mask == 0"
            )
    return mask != 0


def valid_steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mask (B, T) of x (B, T, ...) or of ids (B, T) as booleans; all True if there is none."""
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.shape != x.shape[:2]:
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit, it must be {tuple(x.shape[:2])}")
    return as_bool(mask)


def token_mask(mask: Tensor | None) -> Tensor | None:
    """(B, T) of a mask (B, T), (B, Tq, T) or (B, H, Tq, T): True where some position may attend to a token."""
    if mask is None or mask.ndim == 2:
        return mask
    return as_bool(mask).flatten(1, -2).any(1)


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """True before each length: (B,) -> (B, steps) bool."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def key_mask(mask: Tensor | None, k: Tensor) -> Tensor | None:
    """A mask (B, Tk) as booleans; any other is a ValueError."""
    if mask is None:
        return None
    if mask.shape != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit, it must be {(len(k), k.shape[2])}"
        )
    return as_bool(mask)


def expand_mask(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A mask (B, Tk), (B, Tq, Tk) or of 4 axes as booleans that broadcast to `shape`, (B, H, Tq, Tk)."""
    if mask is None:
        return None
    expanded = mask
    if mask.ndim in (2, 3):
        expanded = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if expanded.ndim != 4 or any(n not in (1, m) for n, m in zip(expanded.shape, shape, strict=True)):
        b, _, q, k = shape
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit, it must be {(b, k)} or {(b, q, k)}"
        )
    return as_bool(expanded)
