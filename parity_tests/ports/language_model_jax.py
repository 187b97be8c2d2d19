"""A recurrent language model (Zaremba et al. 2014, arXiv:1409.2329).

Written as the PyTorch file beside it is.
"""

from flax import nnx
from jax import Array as Tensor

from jaxarch import nn
from jaxarch.nn import functional as F


class RNNModel(nn.Module):
    """An encoder, a recurrent module, and a decoder."""

    def __init__(
        self,
        rnn_type: str,
        ntoken: int,
        ninp: int,
        nhid: int,
        nlayers: int,
        dropout: float = 0.5,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__()
        self.ntoken = ntoken
        self.drop = nn.Dropout(dropout, rngs=rngs)
        self.encoder = nn.Embedding(ntoken, ninp, padding_idx=0, rngs=rngs)
        if rnn_type in ("LSTM", "GRU"):
            self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers, rngs=rngs)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[rnn_type]
            self.rnn = nn.RNN(ninp, nhid, nlayers, nonlinearity=nonlinearity, rngs=rngs)
        self.norm = nn.LayerNorm(nhid)
        self.decoder = nn.Linear(nhid, ntoken, rngs=rngs)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, B) tokens -> (T * B, ntoken) log-probabilities."""
        emb = self.drop(self.encoder(tokens))
        output, _ = self.rnn(emb)
        output = self.drop(self.norm(output))
        decoded = self.decoder(output)
        decoded = decoded.reshape(-1, self.ntoken)
        return F.log_softmax(decoded, dim=1)
