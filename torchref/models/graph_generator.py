"""Edges from latent nodes, as in graph autoencoders: Kipf and Welling 2016, arXiv:1611.07308."""

from torch import Tensor

from torchref import nn


class GraphGenerator(nn.Module):
    """z (..., N, latent_dim), one row per node -> (nodes (..., N, hidden_dim), edges (..., N, N)).

    An edge's probability is sigmoid(linear([node i, node j])), for all pairs at once.
    """

    def __init__(self, latent_dim: int, hidden_dim: int = 16):
        super().__init__()
        self.node_decoder = nn.Linear(latent_dim, hidden_dim)
        self.edge_decoder = nn.Sequential(nn.Linear(2 * hidden_dim, 1), nn.Activation("sigmoid"))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        nodes = self.node_decoder(z)
        return nodes, self.edge_decoder(nn.all_pairs(nodes))[..., 0]
