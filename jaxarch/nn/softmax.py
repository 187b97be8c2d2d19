"""Softmax and its relatives as layers. `dim` counts the axes of the array as it is here: channels are the last."""

from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn import activation as functions
from jaxarch.nn.module import Module


def implicit_dim(ndim: int) -> int:
    """The axis that torch takes for `dim=None`: 0 of 0, 1 or 3 axes, else 1."""
    return 0 if ndim in (0, 1, 3) else 1


class Softmax(Module):
    """exp(x) / its sum along `dim`. Any shape.

    `dim` counts this array's axes; None is torch's choice, 0 of 0, 1 or 3 axes and else 1.
    """

    def __init__(self, dim: int | None = None):
        self.dim = dim

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.softmax(input, implicit_dim(input.ndim) if self.dim is None else self.dim)


class LogSoftmax(Module):
    """The logarithm of `Softmax`, without its rounding. Any shape; `dim` as there."""

    def __init__(self, dim: int | None = None):
        self.dim = dim

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.log_softmax(input, implicit_dim(input.ndim) if self.dim is None else self.dim)


class Softmin(Module):
    """`Softmax` of -x. Any shape; `dim` as there."""

    def __init__(self, dim: int | None = None):
        self.dim = dim

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return functions.softmin(input, implicit_dim(input.ndim) if self.dim is None else self.dim)


class Softmax2d(Module):
    """Softmax over the channels of each pixel: (B, H, W, C) or (H, W, C) -> the same.

    Raises:
        DataError: in the call, another number of axes.
    """

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if input.ndim not in (3, 4):
            raise DataError(f"Softmax2d takes (B, H, W, C) or (H, W, C), not {input.shape}")
        return functions.softmax(input, -1)
