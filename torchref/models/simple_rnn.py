"""A tanh RNN, classified by its last step: Elman 1990."""

from torch import Tensor

from torchref import nn


class SimpleRNN(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, num_classes), from the last valid step."""

    def __init__(self, input_size: int, hidden_size: int, num_classes: int):
        super().__init__()
        self.rnn = nn.RNN(input_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        _, final = self.rnn(x, lengths=lengths)
        return self.fc(final[-1])
