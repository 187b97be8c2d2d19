"""A bidirectional LSTM over tokens: Schuster and Paliwal 1997; Graves and Schmidhuber 2005."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn

State = tuple[Float[Array, "2 b h"], Float[Array, "2 b h"]]


class BiLSTM(nn.Module):
    """x: ids (B, T), hidden or None, lengths (B,) in [1, T] or None -> logits (B, T, vocab_size), final state.

    hidden is (h, c), each (2, B, hidden_size): forward, then reverse. Past a length the logits are the
    bias of `fc`.

    Raises:
        DataError: a hidden state of another shape; outside jit, an id or a length out of range.
    """

    def __init__(self, vocab_size: int, embed_size: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.embed = nn.Embedding(vocab_size, embed_size, rngs=rngs)
        self.lstm = nn.LSTM(embed_size, hidden_size, batch_first=True, bidirectional=True, rngs=rngs)
        self.fc = nn.Linear(2 * hidden_size, vocab_size, rngs=rngs)

    def __call__(
        self, x: Int[Array, "b t"], hidden: State | None = None, lengths: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b t v"], State]:
        out, hidden = self.lstm(self.embed(x), hidden, lengths=lengths)
        return self.fc(out), hidden
