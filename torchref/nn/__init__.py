"""torch.nn's layers, and those of the catalog that torch lacks, under the names `jaxarch.nn` uses."""

from torch.nn import (
    BatchNorm1d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Embedding,
    Linear,
    Module,
    ModuleList,
    Sequential,
)

from torchref.nn.activation import ACTIVATIONS, Activation, activation
from torchref.nn.init import INITIALIZERS, initialized, initializer
from torchref.nn.luong import ConcatAttention, DotProductAttention, GeneralAttention
from torchref.nn.rnn import GRU, LSTM, RNN, length_mask
