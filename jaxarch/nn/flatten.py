"""Axes merged and split in torch's order; their numbers are those of torch's channels-first array."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.module import Module


class Flatten(Module):
    """torch.nn.Flatten: axes start_dim to end_dim become one, the channels before the spatial axes.

    The numbers count torch's axes (B, C, *space), elements are in torch's order: (B, H, W, C) -> (B, C * H * W), and
    with `start_dim=2` (B, H * W, C). A result of three or more axes is channels last again.

    Raises:
        DataError: in the call, an axis that x does not have.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*flat"]:
        start, end = (_axis(d, input.ndim) for d in (self.start_dim, self.end_dim))
        if start > end:
            raise DataError(f"start_dim {self.start_dim} must not come after end_dim {self.end_dim}")
        # Globally pooled maps have only channels left, so nothing has to move.
        if (start, end) == (1, input.ndim - 1) and math.prod(input.shape[1:-1]) == 1:
            return input.reshape(len(input), -1)
        x = _channels_first(input)
        return _channels_last(x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :]))


class Unflatten(Module):
    """torch.nn.Unflatten: axis `dim` becomes several, of which one size may be -1.

    `dim` and `unflattened_size` are torch's: (B, C * H * W) with `Unflatten(1, (C, H, W))` -> (B, H, W, C). An input
    or result of three or more axes is channels last.

    Raises:
        DataError: in the call, an axis that x does not have, or sizes that its elements do not fill.
    """

    def __init__(self, dim: int, unflattened_size: tuple[int, ...] | list[int]):
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*split"]:
        x, axis = _channels_first(input), _axis(self.dim, input.ndim)
        known = math.prod(n for n in self.unflattened_size if n != -1)
        if x.shape[axis] % max(known, 1) or (-1 not in self.unflattened_size and x.shape[axis] != known):
            raise DataError(f"an axis of {x.shape[axis]} cannot be split into {self.unflattened_size}")
        return _channels_last(x.reshape(*x.shape[:axis], *self.unflattened_size, *x.shape[axis + 1 :]))


def _axis(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise DataError(f"axis {dim} is not in an array of {ndim} axes")
    return dim % ndim


def _channels_first(x: Float[Array, "*shape"]) -> Float[Array, "*moved"]:
    return jnp.moveaxis(x, -1, 1) if x.ndim > 2 else x


def _channels_last(x: Float[Array, "*shape"]) -> Float[Array, "*moved"]:
    return jnp.moveaxis(x, 1, -1) if x.ndim > 2 else x
