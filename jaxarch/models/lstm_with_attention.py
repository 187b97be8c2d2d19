"""LSTM with attention over its own steps: Hochreiter and Schmidhuber 1997; Luong et al. 2015."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import unknown

ATTENTIONS = {"dot": nn.DotProductAttention, "general": nn.GeneralAttention, "concat": nn.ConcatAttention}


class LSTMWithAttention(nn.Module):
    """(B, T, input_size), lengths (B,) in [1, T] or None -> (B, T, hidden_size * dirs), zero past the length.

    Dropout acts between the layers of the LSTM and on the result.

    Raises:
        UsageError: unknown attention_type; the known ones are listed.
        DataError: outside jit, a length out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        attention_type: str = "dot",
        *,
        rngs: nnx.Rngs,
    ):
        if attention_type not in ATTENTIONS:
            raise unknown("attention_type", attention_type, ATTENTIONS)
        self.lstm = nn.LSTM(
            input_size,
            hidden_size,
            num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
            bidirectional=bidirectional,
            rngs=rngs,
        )
        width = hidden_size * (2 if bidirectional else 1)
        self.attention = ATTENTIONS[attention_type](width, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t i"], lengths: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t h"]:
        hidden, _ = self.lstm(x, lengths=lengths)
        return self.dropout(self.attention(hidden, lengths=lengths))
