"""Relational graph convolution over a social graph: Schlichtkrull et al. 2018, arXiv:1703.06103."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class SocialGNN(nn.Module):
    """edge_index (2, E), edge_type (E,) in [0, relation_types), x (N, user_feat_dim) -> (N, out_channels).

    A convolution with one matrix per relation; `num_bases` or `num_blocks` make the matrices share weights.
    With `join_relations` a node's features are first concatenated with the mean embedding of its incoming
    edges' relations; without it the embedding is held and does not enter the output, as PyG's RGCNConv takes
    the types themselves.

    Raises:
        UsageError: num_bases and num_blocks together, or blocks that do not divide the channels.
        DataError: outside jit, an edge index or relation is out of range.
    """

    def __init__(
        self,
        user_feat_dim: int,
        relation_types: int,
        out_channels: int = 64,
        relation_dim: int = 16,
        num_bases: int | None = None,
        num_blocks: int | None = None,
        join_relations: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.relation_emb = nn.Embedding(relation_types, relation_dim, rngs=rngs)
        self.join_relations = join_relations
        in_channels = user_feat_dim + relation_dim if join_relations else user_feat_dim
        self.conv = nn.RGCNConv(in_channels, out_channels, relation_types, num_bases, num_blocks, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n i"], edge_index: Int[Array, "2 e"], edge_type: Int[Array, " e"]
    ) -> Float[Array, "n o"]:
        if self.join_relations:
            relations = nn.segment_mean(self.relation_emb(edge_type), edge_index[1], x.shape[0])
            x = jnp.concatenate([x, relations], 1)
        return self.conv(x, edge_index, edge_type)
