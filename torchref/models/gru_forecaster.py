"""A GRU that forecasts from its final state: Cho et al. 2014."""

from torch import Tensor

from torchref import nn


class GRUForecaster(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, pred_steps), from the final state."""

    def __init__(self, input_size: int, hidden_size: int, pred_steps: int):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True)
        self.linear = nn.Linear(hidden_size, pred_steps)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        _, final = self.gru(x, lengths=lengths)
        return self.linear(final[-1])
