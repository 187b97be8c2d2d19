"""Two graph convolutions, mean pooling and a classifier: Kipf and Welling 2017, arXiv:1609.02907."""

from typing import Any

from torch import Tensor

from torchref import nn


class GNN(nn.Module):
    """x (N, num_features), edge_index (2, E), n_node (G,), edge_weight (E,) -> (G, num_classes).

    `n_node` is jraph's: how many nodes each graph has, in order; None is one graph. ReLU and dropout are
    between the convolutions. In place of x and edge_index a graph is accepted, see `nn.graph_inputs`.
    """

    def __init__(self, num_features: int, hidden_dim: int, num_classes: int, dropout: float = 0.5):
        super().__init__()
        self.conv1 = nn.GCNConv(num_features, hidden_dim)
        self.activation = nn.Activation("relu")
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.GCNConv(hidden_dim, hidden_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def forward(
        self,
        x: Any,
        edge_index: Tensor | None = None,
        n_node: Tensor | None = None,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        x, edge_index, n_node = nn.graph_inputs(x, edge_index, n_node)
        x = self.dropout(self.activation(self.conv1(x, edge_index, edge_weight)))
        x = self.conv2(x, edge_index, edge_weight)
        batch = None if n_node is None else nn.graph_ids(n_node, x.shape[0])
        return self.classifier(nn.global_mean_pool(x, batch, 1 if n_node is None else n_node.shape[0]))
