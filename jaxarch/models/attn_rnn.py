"""A GRU pooled by attention over its steps: Cho et al. 2014; Bahdanau et al. 2014."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class AttnRNN(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, hidden_size).

    With `return_attention` also the weights (B, T), zero from the length on.

    Raises:
        DataError: outside jit, a length out of range.
    """

    def __init__(self, input_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.rnn = nn.GRU(input_size, hidden_size, batch_first=True, rngs=rngs)
        self.attn = nn.Linear(hidden_size, 1, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t i"],
        lengths: Int[Array, " b"] | None = None,
        return_attention: bool = False,
    ) -> Float[Array, "b h"] | tuple[Float[Array, "b h"], Float[Array, "b t"]]:
        hidden, _ = self.rnn(x, lengths=lengths)
        scores = self.attn(hidden)[..., 0]
        if lengths is not None:
            valid = nn.length_mask(lengths, x.shape[1])
            scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, -1)
        pooled = jnp.einsum("bt,bth->bh", weights, hidden)
        return (pooled, weights) if return_attention else pooled
