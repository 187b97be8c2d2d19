"""Messages from both nodes of an edge and its features: Gilmer et al. 2017, arXiv:1704.01212."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class EdgeAwareGNN(nn.Module):
    """x (N, node_dim), edge_index (2, E), edge_attr (E, edge_dim) -> (N, hidden_dim), by default node_dim.

    A node gets the mean over its incoming edges of ReLU(linear([node, neighbour, edge])), 0 without any.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """

    def __init__(self, node_dim: int, edge_dim: int, hidden_dim: int | None = None, *, rngs: nnx.Rngs):
        hidden_dim = node_dim if hidden_dim is None else hidden_dim
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * node_dim + edge_dim, hidden_dim, rngs=rngs), nn.Activation("relu")
        )

    def __call__(
        self, x: Float[Array, "n i"], edge_index: Int[Array, "2 e"], edge_attr: Float[Array, "e d"]
    ) -> Float[Array, "n o"]:
        messages = self.edge_mlp(nn.edge_inputs(x, edge_index, edge_attr))
        return nn.segment_mean(messages, edge_index[1], x.shape[0])
