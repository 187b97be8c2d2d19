"""A recurrent language model (Zaremba et al. 2014, arXiv:1409.2329).

Written as such files are for PyTorch.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class RNNModel(nn.Module):
    """An encoder, a recurrent module, and a decoder."""

    def __init__(self, rnn_type: str, ntoken: int, ninp: int, nhid: int, nlayers: int, dropout: float = 0.5):
        super().__init__()
        self.ntoken = ntoken
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp, padding_idx=0)
        if rnn_type in ("LSTM", "GRU"):
            self.rnn = getattr(nn, rnn_type)(ninp, nhid, nlayers)
        else:
            nonlinearity = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[rnn_type]
            self.rnn = nn.RNN(ninp, nhid, nlayers, nonlinearity=nonlinearity)
        self.norm = nn.LayerNorm(nhid)
        self.decoder = nn.Linear(nhid, ntoken)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, B) tokens -> (T * B, ntoken) log-probabilities."""
        emb = self.drop(self.encoder(tokens))
        output, _ = self.rnn(emb)
        output = self.drop(self.norm(output))
        decoded = self.decoder(output)
        decoded = decoded.reshape(-1, self.ntoken)
        return F.log_softmax(decoded, dim=1)
