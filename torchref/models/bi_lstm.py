"""A bidirectional LSTM over tokens: Schuster and Paliwal 1997; Graves and Schmidhuber 2005."""

from torch import Tensor

from torchref import nn


class BiLSTM(nn.Module):
    """x: ids (B, T), hidden or None, lengths (B,) in [1, T] or None -> logits (B, T, vocab_size), final state.

    hidden is (h, c), each (2, B, hidden_size): forward, then reverse. Past a length the logits are the
    bias of `fc`.
    """

    def __init__(self, vocab_size: int, embed_size: int, hidden_size: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, embed_size)
        self.lstm = nn.LSTM(embed_size, hidden_size, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, vocab_size)

    def forward(
        self, x: Tensor, hidden: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, hidden = self.lstm(self.embed(x), hidden, lengths=lengths)
        return self.fc(out), hidden
