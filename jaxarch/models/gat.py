"""Graph attention network: Velickovic et al. 2018, arXiv:1710.10903."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class GAT(nn.Module):
    """x (N, num_features), edge_index (2, E) -> (N, num_classes): class scores of every node.

    The heads of the first layer are concatenated, the second has one. `dropout` acts on the hidden features,
    `attention_dropout` on the attention weights of both layers.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """

    def __init__(
        self,
        num_features: int,
        hidden_dim: int,
        num_classes: int,
        heads: int = 4,
        dropout: float = 0.6,
        attention_dropout: float = 0.6,
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = nn.GATConv(num_features, hidden_dim, heads, dropout=attention_dropout, rngs=rngs)
        self.activation = nn.Activation("elu")
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.conv2 = nn.GATConv(hidden_dim * heads, num_classes, dropout=attention_dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "n i"], edge_index: Int[Array, "2 e"]) -> Float[Array, "n o"]:
        x = self.dropout(self.activation(self.conv1(x, edge_index)))
        return self.conv2(x, edge_index)
