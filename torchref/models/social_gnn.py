"""Relational graph convolution over a social graph: Schlichtkrull et al. 2018, arXiv:1703.06103."""

import torch
from torch import Tensor

from torchref import nn


class SocialGNN(nn.Module):
    """edge_index (2, E), edge_type (E,) in [0, num_relations), x (N, in_channels) -> (N, out_channels).

    A node's features are concatenated with the mean embedding of its incoming edges' relations, then
    convolved with one matrix per relation; `num_bases` or `num_blocks` make the matrices share weights.
    """

    def __init__(
        self,
        in_channels: int,
        num_relations: int,
        out_channels: int = 64,
        relation_dim: int = 16,
        num_bases: int | None = None,
        num_blocks: int | None = None,
    ):
        super().__init__()
        self.relation_emb = nn.Embedding(num_relations, relation_dim)
        self.conv = nn.RGCNConv(
            in_channels + relation_dim, out_channels, num_relations, num_bases, num_blocks
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        relations = nn.segment_mean(self.relation_emb(edge_type), edge_index[1], x.shape[0])
        return self.conv(torch.cat([x, relations], 1), edge_index, edge_type)
