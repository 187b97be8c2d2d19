"""P-tuning: trained vectors before a sequence. Liu et al. 2021, arXiv:2103.10385."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Module, Sequential

from torchref.nn import LSTM, Activation, normal_parameter

ENCODERS = ("embedding", "mlp", "lstm")


class PTuningLayer(Module):
    """(B, T, D) -> (B, prompt_length + T, D): the prompt, encoded, then the sequence.

    `encoder` is how the prompt is made from its vectors: "embedding" takes them as they are, "mlp" passes
    them through two layers, "lstm" through a bidirectional LSTM and two layers, as in the paper. An unknown
    one is a ValueError.
    """

    def __init__(
        self, d_model: int, prompt_length: int = 10, dropout: float = 0.1, encoder: str = "embedding"
    ):
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown prompt encoder {encoder!r}: known: {', '.join(ENCODERS)}")
        self.prompt_length = prompt_length
        self.prompt_embeddings = normal_parameter((prompt_length, d_model), 0.02)
        self.lstm: Any = None
        self.mlp: Any = None
        if encoder == "lstm":
            self.lstm = LSTM(d_model, d_model, bidirectional=True, batch_first=True)
        if encoder != "embedding":
            width = 2 * d_model if encoder == "lstm" else d_model
            self.mlp = Sequential(Linear(width, d_model), Activation("relu"), Linear(d_model, d_model))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        prompt = self.prompt_embeddings[None]
        prompt = prompt if self.lstm is None else self.lstm(prompt)[0]
        prompt = prompt if self.mlp is None else self.mlp(prompt)
        prompt = self.dropout(prompt.expand(x.shape[0], -1, -1))
        return torch.cat((prompt, x), 1)

    def extend_mask(self, mask: Tensor) -> Tensor:
        """A mask (B, T) with the prompt, which is always attended to, before it."""
        return torch.cat((mask.new_ones(mask.shape[0], self.prompt_length), mask), 1)

    def extend_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, T) with -100, which does not count, for the prompt before them."""
        return torch.cat((labels.new_full((labels.shape[0], self.prompt_length), -100), labels), 1)


P_TuningLayer = PTuningLayer
