"""An LSTM over images, with convolutions for its products: Shi et al. 2015, arXiv:1506.04214.

Without the paper's peepholes, whose weights would fix the size of the images.
"""

import torch
from torch import Tensor

from torchref import nn


class ConvLSTMCell(nn.Module):
    """One layer. Gates in the order i, f, g, o, as in torch's LSTM."""

    def __init__(self, input_channels: int, hidden_channels: int, kernel_size: int):
        super().__init__()
        gates, pad = 4 * hidden_channels, kernel_size // 2
        self.conv_ih = nn.Conv2d(input_channels, gates, kernel_size, padding=pad)
        self.conv_hh = nn.Conv2d(hidden_channels, gates, kernel_size, padding=pad, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, C, H, W), state (h, c) of (B, hidden_channels, H, W) -> h of every step, final state."""
        # The input's convolution does not depend on the state: it is one call for all steps.
        products = self.conv_ih(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        (h, c), outputs = state, []
        for product in products.unbind(1):
            i, f, g, o = (product + self.conv_hh(h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h, c)


class ConvLSTM(nn.Module):
    """(B, T, C, H, W), state or None -> (B, T, hidden_channels, H, W) of the last layer, final state.

    The state is (h, c), each (num_layers, B, hidden_channels, H, W). An even kernel_size is a ValueError.
    """

    def __init__(self, input_channels: int, hidden_channels: int, kernel_size: int = 3, num_layers: int = 1):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd, so that images keep their size")
        self.hidden_channels = hidden_channels
        self.cells = nn.ModuleList(
            ConvLSTMCell(hidden_channels if i else input_channels, hidden_channels, kernel_size)
            for i in range(num_layers)
        )

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            zeros = x.new_zeros(len(self.cells), x.shape[0], self.hidden_channels, *x.shape[3:])
            state = (zeros, zeros)
        final = []
        for cell, h, c in zip(self.cells, *state, strict=True):
            x, last = cell(x, (h, c))
            final.append(last)
        h, c = (torch.stack(leaves) for leaves in zip(*final, strict=True))
        return x, (h, c)
