"""Mean of the neighbours, then a linear layer; after Kipf and Welling 2017, arXiv:1609.02907."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class GCNLayer(nn.Module):
    """x (N, in_features), edge_index (2, E) -> (N, out_features); a node without incoming edges gives the bias.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.linear = nn.Linear(in_features, out_features, rngs=rngs)

    def __call__(self, x: Float[Array, "n i"], edge_index: Int[Array, "2 e"]) -> Float[Array, "n o"]:
        return self.linear(nn.mean_of_neighbours(x, edge_index))
