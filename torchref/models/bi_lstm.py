"""A bidirectional LSTM over tokens: Schuster and Paliwal 1997; Graves and Schmidhuber 2005."""

from torch import Tensor

from torchref import nn


class BiLSTM(nn.Module):
    """ids (B, T), state or None, lengths (B,) in [1, T] or None -> logits (B, T, vocab_size), final state.

    The state is (h, c), each (2, B, hidden_dim): forward, then reverse. Past a length the logits are the
    bias of `fc`.
    """

    def __init__(self, vocab_size: int, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, embed_dim)
        self.lstm = nn.LSTM(embed_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_dim, vocab_size)

    def forward(
        self, ids: Tensor, state: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, state = self.lstm(self.embed(ids), state, lengths=lengths)
        return self.fc(hidden), state
