"""Mean of the neighbours, then a linear layer; after Kipf and Welling 2017, arXiv:1609.02907."""

from torch import Tensor

from torchref import nn


class GCNLayer(nn.Module):
    """x (N, in_features), edge_index (2, E) -> (N, out_features); a node without incoming edges gives the bias."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.linear(nn.mean_of_neighbours(x, edge_index))
