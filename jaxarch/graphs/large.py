"""A graph too large for one step or one device: neighbour sampling, and edges sharded over a mesh."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jraph import GraphsTuple
from numpy.typing import ArrayLike

from jaxarch.errors import DataError, UsageError
from jaxarch.graphs.padding import pad
from jaxarch.graphs.tuples import make_graph


def sort_edges(graph: GraphsTuple) -> GraphsTuple:
    """The same graph with its edges sorted by receiver, as `indices_are_sorted` requires."""
    order = np.argsort(graph.receivers, kind="stable")
    return graph._replace(
        senders=graph.senders[order],
        receivers=graph.receivers[order],
        edges=jax.tree.map(lambda v: v[order], graph.edges),
    )


class NeighborSampler:
    """Subgraphs around seed nodes (Hamilton et al. 2017, arXiv:1706.02216), for a graph that does not fit.

    Args:
        graph: one graph.
        fanouts: for each hop outwards how many of a node's incoming edges are sampled, without replacement;
            -1 takes all.

    Raises:
        UsageError: a fanout that is neither -1 nor positive.
    """

    def __init__(self, graph: GraphsTuple, fanouts: Sequence[int]):
        if not fanouts or any(f < 1 and f != -1 for f in fanouts):
            raise UsageError(f"fanouts {list(fanouts)}: each must be positive, or -1 for all")
        self.graph, self.fanouts = graph, tuple(fanouts)
        self.order = np.argsort(graph.receivers, kind="stable")
        counts = np.bincount(graph.receivers, minlength=int(graph.n_node.sum()))
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def sample(self, seeds: ArrayLike, seed: int = 0) -> GraphsTuple:
        """The subgraph of the seeds, which are its first nodes, in order.

        `nodes["node_id"]` and `edges["edge_id"]` are the ids in the whole graph.

        Raises:
            DataError: a seed is out of range or given twice.
        """
        rng, total = np.random.default_rng(seed), len(self.starts) - 1
        seeds = np.asarray(seeds, np.int64).reshape(-1)
        if len(np.unique(seeds)) != len(seeds) or ((seeds < 0) | (seeds >= total)).any():
            raise DataError(f"seeds must be different nodes in [0, {total})")
        visited, frontier, sampled = seeds, seeds, [np.zeros(0, np.int64)]
        for fanout in self.fanouts:
            edges = self._incoming(frontier, fanout, rng)
            sampled.append(edges)
            sources = self.graph.senders[edges]
            _, first = np.unique(sources, return_index=True)
            sources = sources[np.sort(first)]
            frontier = sources[~np.isin(sources, visited)]
            visited = np.concatenate([visited, frontier])
        edges = np.concatenate(sampled)
        new_id = np.full(total, -1)
        new_id[visited] = np.arange(len(visited))
        index = np.stack([new_id[self.graph.senders[edges]], new_id[self.graph.receivers[edges]]])
        nodes = {k: np.asarray(v)[visited] for k, v in (self.graph.nodes or {}).items()}
        features = {k: np.asarray(v)[edges] for k, v in (self.graph.edges or {}).items()}
        return make_graph(index, nodes={**nodes, "node_id": visited}, edges={**features, "edge_id": edges})

    def _incoming(self, targets: np.ndarray, fanout: int, rng: np.random.Generator) -> np.ndarray:
        """Edges into the targets: at most `fanout` of each, all of them for -1."""
        starts, counts = self.starts[targets], self.starts[targets + 1] - self.starts[targets]
        group = np.repeat(np.arange(len(targets)), counts)
        within = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        edges = self.order[starts[group] + within]
        if fanout == -1:
            return edges
        # Within each group the random keys' order is a random permutation, of which the first are taken.
        shuffled = np.lexsort((rng.random(len(group)), group))
        return edges[np.sort(shuffled[within < fanout])]


def shard_edges(graph: GraphsTuple, mesh: Mesh, axes: Sequence[str] | None = None) -> GraphsTuple:
    """The graph on a mesh: edges sharded over `axes` (all if not given), nodes and graphs replicated.

    Under jit every device then sends the messages of its own edges, and the partial segment sums are added
    over the devices. The edges are padded to a multiple of the devices, with a padding graph.
    """
    axes = tuple(mesh.axis_names) if axes is None else tuple(axes)
    devices = int(np.prod([mesh.shape[a] for a in axes]))
    nodes, edges = int(graph.n_node.sum()), int(graph.n_edge.sum())
    padded = pad(graph, nodes + 1, -(-edges // devices) * devices, len(graph.n_node) + 1)
    sharded = NamedSharding(mesh, PartitionSpec(axes))
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = GraphsTuple(replicated, sharded, sharded, sharded, replicated, replicated, replicated)
    return GraphsTuple(*(jax.device_put(v, s) for v, s in zip(padded, shardings, strict=True)))
