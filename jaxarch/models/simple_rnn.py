"""A tanh RNN, classified by its last step: Elman 1990."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class SimpleRNN(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, num_classes), from the last valid step.

    Raises:
        DataError: outside jit, a length out of range.
    """

    def __init__(self, input_size: int, hidden_size: int, num_classes: int, *, rngs: nnx.Rngs):
        self.rnn = nn.RNN(input_size, hidden_size, batch_first=True, rngs=rngs)
        self.fc = nn.Linear(hidden_size, num_classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t i"], lengths: Int[Array, " b"] | None = None
    ) -> Float[Array, "b o"]:
        _, final = self.rnn(x, lengths=lengths)
        return self.fc(final[-1])
