"""A GRU that forecasts from its final state: Cho et al. 2014."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class GRUForecaster(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, pred_steps), from the final state.

    Raises:
        DataError: outside jit, a length out of range.
    """

    def __init__(self, input_size: int, hidden_size: int, pred_steps: int, *, rngs: nnx.Rngs):
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True, rngs=rngs)
        self.linear = nn.Linear(hidden_size, pred_steps, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t i"], lengths: Int[Array, " b"] | None = None
    ) -> Float[Array, "b o"]:
        _, final = self.gru(x, lengths=lengths)
        return self.linear(final[-1])
