"""LSTM with attention over its own steps: Hochreiter and Schmidhuber 1997; Luong et al. 2015."""

from torch import Tensor

from torchref import nn

ATTENTIONS = {"dot": nn.DotProductAttention, "general": nn.GeneralAttention, "concat": nn.ConcatAttention}


class LSTMWithAttention(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, T, hidden_size * dirs), zero past the length.

    Dropout acts between the layers of the LSTM and on the result. An unknown attention_type is a ValueError.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        attention_type: str = "dot",
    ):
        super().__init__()
        if attention_type not in ATTENTIONS:
            raise ValueError(f"unknown attention_type {attention_type!r}: known: {', '.join(ATTENTIONS)}")
        self.lstm = nn.LSTM(
            input_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        width = hidden_size * (2 if bidirectional else 1)
        self.attention = ATTENTIONS[attention_type](width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        hidden, _ = self.lstm(x, lengths=lengths)
        return self.dropout(self.attention(hidden, lengths=lengths))
