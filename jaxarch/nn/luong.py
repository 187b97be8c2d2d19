"""Luong's attention scores, as self-attention over the hidden states of a sequence (Luong et al. 2015)."""

from typing import Literal, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError
from jaxarch.nn.linear import Linear
from jaxarch.nn.masks import length_mask
from jaxarch.nn.module import Module


class LuongAttention(Module):
    """The base class of the three scores: softmax over the valid steps, weighted sum of the hidden states.

    hidden (B, T, hidden_size), mask (B, T) True where valid, lengths (B,) in [1, T]; with both, a step is
    valid if both agree -> context (B, T, hidden_size), zero at steps that are not valid. With
    `return_weights` also the weights (B, T, T), query before key.

    Raises:
        DataError: hidden is not hidden_size wide; outside jit, a length is out of range.
    """

    hidden_size: int

    def score(self, hidden: Float[Array, "b t h"]) -> Float[Array, "b t t"]:
        """The score of every query step (axis 1) against every key step (axis 2)."""
        raise TypeError(f"{type(self).__name__} does not define its score")

    @overload
    def __call__(
        self,
        hidden: Float[Array, "b t h"],
        mask: Bool[Array, "b t"] | None = None,
        lengths: Int[Array, " b"] | None = None,
        return_weights: Literal[False] = False,
    ) -> Float[Array, "b t h"]: ...

    @overload
    def __call__(
        self,
        hidden: Float[Array, "b t h"],
        mask: Bool[Array, "b t"] | None = None,
        lengths: Int[Array, " b"] | None = None,
        *,
        return_weights: Literal[True],
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t t"]]: ...

    def __call__(
        self,
        hidden: Float[Array, "b t h"],
        mask: Bool[Array, "b t"] | None = None,
        lengths: Int[Array, " b"] | None = None,
        return_weights: bool = False,
    ) -> Float[Array, "b t h"] | tuple[Float[Array, "b t h"], Float[Array, "b t t"]]:
        if hidden.shape[-1] != self.hidden_size:
            raise DataError(f"hidden has {hidden.shape[-1]} features, hidden_size is {self.hidden_size}")
        if lengths is not None:
            valid = length_mask(lengths, hidden.shape[1])
            mask = valid if mask is None else mask & valid
        if mask is None:
            weights = jax.nn.softmax(self.score(hidden), -1)
        else:
            hidden = jnp.where(mask[..., None], hidden, 0)
            scores = jnp.where(mask[:, None], self.score(hidden), jnp.finfo(hidden.dtype).min)
            weights = jnp.where(mask[:, None] & mask[..., None], jax.nn.softmax(scores, -1), 0)
        context = weights @ hidden
        return (context, weights) if return_weights else context


class DotProductAttention(LuongAttention):
    """score(h_t, h_s) = h_t . h_s"""

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.hidden_size = hidden_size

    def score(self, hidden: Float[Array, "b t h"]) -> Float[Array, "b t t"]:
        return hidden @ hidden.swapaxes(1, 2)


class GeneralAttention(LuongAttention):
    """score(h_t, h_s) = h_t . W h_s"""

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.hidden_size = hidden_size
        self.linear = Linear(hidden_size, hidden_size, bias=False, rngs=rngs)

    def score(self, hidden: Float[Array, "b t h"]) -> Float[Array, "b t t"]:
        return hidden @ self.linear(hidden).swapaxes(1, 2)


class ConcatAttention(LuongAttention):
    """score(h_t, h_s) = v . tanh(W [h_t; h_s]); no bias, as in the paper. Takes memory B T^2 hidden_size."""

    def __init__(self, hidden_size: int, *, rngs: nnx.Rngs):
        self.hidden_size = hidden_size
        self.linear = Linear(2 * hidden_size, hidden_size, bias=False, rngs=rngs)
        self.v = Linear(hidden_size, 1, bias=False, rngs=rngs)

    def score(self, hidden: Float[Array, "b t h"]) -> Float[Array, "b t t"]:
        # W [h_t; h_s] is a sum, so that each half is multiplied once per step and not once per pair.
        weight = self.linear.weight[...]
        query, key = hidden @ weight[: self.hidden_size], hidden @ weight[self.hidden_size :]
        return self.v(jnp.tanh(query[:, :, None] + key[:, None]))[..., 0]
