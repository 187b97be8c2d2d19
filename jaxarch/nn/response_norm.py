"""Local response normalisation across channels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.module import Module


class LocalResponseNorm(Module):
    """x / (k + alpha * mean of the squares of `size` neighbouring channels)^beta (Krizhevsky et al. 2012).

    (B, ..., C) with one spatial axis or more -> the same. Channels beyond the ends count as 0. torch's older
    CrossMapLRN2d is not here: its sums keep the first channel and its gradient is not that of its output.

    Raises:
        UsageError: size is below 1.
        DataError: in the call, fewer than 3 axes.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        if size < 1:
            raise UsageError(f"size must be at least 1, not {size}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if input.ndim < 3:
            raise DataError(
                f"LocalResponseNorm takes (B, ..., C) of 3 axes or more, not an input of shape {input.shape}"
            )
        lone = (1,) * (input.ndim - 1)
        pads = ((0, 0),) * (input.ndim - 1) + ((self.size // 2, (self.size - 1) // 2),)
        sums = jax.lax.reduce_window(
            jnp.square(input), 0.0, jax.lax.add, (*lone, self.size), (*lone, 1), pads
        )
        return input / (self.k + self.alpha * sums / self.size) ** self.beta
