"""A bidirectional LSTM over tokens: Schuster and Paliwal 1997; Graves and Schmidhuber 2005."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn

State = tuple[Float[Array, "2 b h"], Float[Array, "2 b h"]]


class BiLSTM(nn.Module):
    """ids (B, T), state or None, lengths (B,) in [1, T] or None -> logits (B, T, vocab_size), final state.

    The state is (h, c), each (2, B, hidden_dim): forward, then reverse. Past a length the logits are the
    bias of `fc`.

    Raises:
        DataError: a state of another shape; outside jit, an id or a length out of range.
    """

    def __init__(self, vocab_size: int, embed_dim: int, hidden_dim: int, *, rngs: nnx.Rngs):
        self.embed = nn.Embedding(vocab_size, embed_dim, rngs=rngs)
        self.lstm = nn.LSTM(embed_dim, hidden_dim, batch_first=True, bidirectional=True, rngs=rngs)
        self.fc = nn.Linear(2 * hidden_dim, vocab_size, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b t"], state: State | None = None, lengths: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b t v"], State]:
        hidden, state = self.lstm(self.embed(ids), state, lengths=lengths)
        return self.fc(hidden), state
