"""Padding of the spatial axes, channels last: signals (B, T, C), images (B, H, W, C), volumes (B, D, H, W, C).
The batch is optional.

As in torch the numbers begin with the last spatial axis: (left, right, top, bottom, front, back). Negative ones
cut off.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn.module import Module
from jaxarch.nn.unbatched import unbatched

Pads = tuple[tuple[int, int], ...]
# torch's names of padding modes, and numpy's.
MODES = {
    "zeros": "constant",
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


def pad(
    x: Float[Array, "b *space c"], pads: Pads, mode: str = "constant", value: float | int = 0.0
) -> Float[Array, "b *padded c"]:
    """x with (before, after) added to each spatial axis, the first axis first.

    Args:
        x: (B, *space, C).
        pads: negative numbers cut off; a reflection is then one of the whole axis, a circle one of what remains.
        mode: "constant" or "zeros", "reflect", "replicate" or "circular".
        value: of the constant.

    Raises:
        UsageError: unknown mode.
        DataError: an axis is too short for its padding.
    """
    if mode not in MODES:
        raise unknown("padding mode", mode, MODES)
    for n, (before, after) in zip(x.shape[1:-1], pads, strict=True):
        room = n + min(before, 0) + min(after, 0) if mode == "circular" else n
        longest = {"reflect": n - 1, "circular": room}.get(mode, before + after + n)
        if max(before, after) > longest or n + before + after < 1:
            raise DataError(f"an axis of {n} is too short for {mode} padding ({before}, {after})")
    if MODES[mode] == "constant":
        constant = jnp.asarray(0 if mode == "zeros" else value, x.dtype)
        return jax.lax.pad(x, constant, ((0, 0, 0), *((a, b, 0) for a, b in pads), (0, 0, 0)))
    if mode == "circular":
        x = _cut(x, pads)
    added = [(max(a, 0), max(b, 0)) for a, b in pads]
    if np.any(added):
        x = jnp.pad(x, ((0, 0), *added, (0, 0)), mode=MODES[mode])  # type: ignore[arg-type]
    return x if mode == "circular" else _cut(x, pads)


def _cut(x: Float[Array, "b *space c"], pads: Pads) -> Float[Array, "b *cut c"]:
    """x without what negative numbers cut off."""
    kept = tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in zip(x.shape[1:-1], pads, strict=True))
    return x[(slice(None), *kept)]


class _Pad(Module):
    """The base class of padding by one of torch's modes."""

    rank: ClassVar[int]
    mode: ClassVar[str]

    def __init__(self, padding: int | tuple[int, ...]):
        self.padding = _padding(padding, self.rank)
        self.value = 0.0

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Float[Array, "*padded c"]:
        pairs = tuple(zip(self.padding[::2], self.padding[1::2], strict=True))
        return pad(input, pairs[::-1], self.mode, self.value)


def _padding(padding: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Two numbers for each axis, the last axis first."""
    numbers = (padding,) * (2 * rank) if isinstance(padding, int) else tuple(padding)
    if len(numbers) != 2 * rank:
        raise UsageError(f"padding {padding} needs {2 * rank} numbers")
    return numbers


class _ConstantPad(_Pad):
    """Padding with one value."""

    mode = "constant"

    def __init__(self, padding: int | tuple[int, ...], value: float | int):
        super().__init__(padding)
        self.value = value


class ReflectionPad1d(_Pad):
    """torch.nn.ReflectionPad1d: mirrored at the border. (B, T, C) -> (B, T', C)."""

    rank, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """torch.nn.ReflectionPad2d: mirrored at the border. (B, H, W, C) -> (B, H', W', C)."""

    rank, mode = 2, "reflect"


class ReflectionPad3d(_Pad):
    """torch.nn.ReflectionPad3d: mirrored at the border. (B, D, H, W, C) -> (B, D', H', W', C)."""

    rank, mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """torch.nn.ReplicationPad1d: with the border repeated. (B, T, C) -> (B, T', C)."""

    rank, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """torch.nn.ReplicationPad2d: with the border repeated. (B, H, W, C) -> (B, H', W', C)."""

    rank, mode = 2, "replicate"


class ReplicationPad3d(_Pad):
    """torch.nn.ReplicationPad3d: with the border repeated. (B, D, H, W, C) -> (B, D', H', W', C)."""

    rank, mode = 3, "replicate"


class CircularPad1d(_Pad):
    """torch.nn.CircularPad1d: continued from the other side. (B, T, C) -> (B, T', C)."""

    rank, mode = 1, "circular"


class CircularPad2d(_Pad):
    """torch.nn.CircularPad2d: continued from the other side. (B, H, W, C) -> (B, H', W', C)."""

    rank, mode = 2, "circular"


class CircularPad3d(_Pad):
    """torch.nn.CircularPad3d: continued from the other side. (B, D, H, W, C) -> (B, D', H', W', C)."""

    rank, mode = 3, "circular"


class ConstantPad1d(_ConstantPad):
    """torch.nn.ConstantPad1d. (B, T, C) -> (B, T', C)."""

    rank = 1


class ConstantPad2d(_ConstantPad):
    """torch.nn.ConstantPad2d. (B, H, W, C) -> (B, H', W', C)."""

    rank = 2


class ConstantPad3d(_ConstantPad):
    """torch.nn.ConstantPad3d. (B, D, H, W, C) -> (B, D', H', W', C)."""

    rank = 3


class ZeroPad1d(_Pad):
    """torch.nn.ZeroPad1d. (B, T, C) -> (B, T', C)."""

    rank, mode = 1, "zeros"


class ZeroPad2d(_Pad):
    """torch.nn.ZeroPad2d. (B, H, W, C) -> (B, H', W', C)."""

    rank, mode = 2, "zeros"


class ZeroPad3d(_Pad):
    """torch.nn.ZeroPad3d. (B, D, H, W, C) -> (B, D', H', W', C)."""

    rank, mode = 3, "zeros"
