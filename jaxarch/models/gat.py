"""Graph attention network: Velickovic et al. 2018, arXiv:1710.10903."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class GAT(nn.Module):
    """x (N, num_features), edge_index (2, E) -> (N, num_classes), by default hidden_dim numbers for every node.

    The heads of the first layer are concatenated, the second has one. `dropout` acts on the hidden features,
    `attention_dropout` on the attention weights of both layers (0.6 in the paper). In place of x and edge_index
    a graph is accepted, see `nn.graph_inputs`.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """

    def __init__(
        self,
        num_features: int,
        hidden_dim: int,
        heads: int = 4,
        num_classes: int | None = None,
        dropout: float = 0.6,
        attention_dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = nn.GATConv(num_features, hidden_dim, heads, dropout=attention_dropout, rngs=rngs)
        self.activation = nn.Activation("elu")
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        out_dim = hidden_dim if num_classes is None else num_classes
        self.conv2 = nn.GATConv(hidden_dim * heads, out_dim, dropout=attention_dropout, rngs=rngs)

    def __call__(self, x: Any, edge_index: Int[Array, "2 e"] | None = None) -> Float[Array, "n o"]:
        x, edge_index, _ = nn.graph_inputs(x, edge_index)
        x = self.dropout(self.activation(self.conv1(x, edge_index)))
        return self.conv2(x, edge_index)
