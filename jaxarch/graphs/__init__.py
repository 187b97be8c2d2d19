"""Graphs as `jraph.GraphsTuple`: built, converted, batched and padded, sampled, sharded.

Nodes, edges and globals are mappings from names to arrays, so that `apply` can pass a model the arguments that
it names: `x`, `edge_index`, `edge_attr`, `n_node`. Everything but `apply`, `shard_edges` and the masks is numpy,
on the host. Messages go from `senders` to `receivers`, the two rows of PyG's `edge_index`.
"""

from jaxarch.errors import require

require("jraph", "graph", "jaxarch.graphs")

from jraph import GraphsTuple

from jaxarch.graphs.conversion import from_edges, from_networkx, from_pyg, to_networkx, to_pyg
from jaxarch.graphs.large import NeighborSampler, shard_edges, sort_edges
from jaxarch.graphs.padding import Buckets, batch, edge_mask, graph_mask, node_mask, pad, unbatch, unpad
from jaxarch.graphs.tuples import apply, edge_index, make_graph
