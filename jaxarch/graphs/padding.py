"""Graphs batched into one, and padded to few static shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jraph import GraphsTuple

from jaxarch.errors import DataError, UsageError


def batch(graphs: Sequence[GraphsTuple]) -> GraphsTuple:
    """Several graphs as one; the node ids of each are offset by the nodes of those before.

    Raises:
        DataError: there is none, or they do not have the same features.
    """
    if not graphs:
        raise DataError("a batch needs at least one graph")
    if len({jax.tree.structure(g) for g in graphs}) > 1:
        raise DataError("the graphs of a batch must hold the same features")
    return _int32(jraph.batch_np(list(graphs)))


def unbatch(graph: GraphsTuple) -> list[GraphsTuple]:
    """The graphs of a batch, one by one."""
    return [_int32(g) for g in jraph.unbatch_np(graph)]


def pad(graph: GraphsTuple, nodes: int, edges: int, graphs: int) -> GraphsTuple:
    """The graph padded to static sizes by jraph: a graph of padding nodes and edges, then empty graphs.

    The padding is connected to no real node, so outputs and gradients stay the same. At least one node and one
    graph are padding.

    Raises:
        DataError: the graph does not fit.
    """
    needed = int(graph.n_node.sum()) + 1, int(graph.n_edge.sum()), len(graph.n_node) + 1
    if any(n > s for n, s in zip(needed, (nodes, edges, graphs), strict=True)):
        raise DataError(
            f"a graph that with its padding has {needed[0]} nodes, {needed[1]} edges and {needed[2]} graphs "
            f"does not fit into {nodes}, {edges} and {graphs}"
        )
    return _int32(jraph.pad_with_graphs(graph, nodes, edges, graphs))


def unpad(graph: GraphsTuple) -> GraphsTuple:
    """The graph without its padding."""
    return _int32(jraph.unpad_with_graphs(graph))


def node_mask(graph: GraphsTuple) -> jax.Array:
    """(N,) True at the nodes of a padded graph that are real."""
    return _real_rows(_num_nodes(graph), graph.n_node, graph)


def edge_mask(graph: GraphsTuple) -> jax.Array:
    """(E,) True at the edges of a padded graph that are real."""
    return _real_rows(graph.senders.shape[0], graph.n_edge, graph)


def graph_mask(graph: GraphsTuple) -> jax.Array:
    """(G,) True at the graphs of a padded batch that are real."""
    return _real_rows(graph.n_node.shape[0], jnp.ones_like(graph.n_node), graph)


@dataclass(frozen=True)
class Buckets:
    """The few shapes that batches are padded to: ascending nodes and edges, one number of graphs.

    A function jitted over what `collate` returns compiles at most `len(nodes)` times. As a `batch_fn` of
    Grain: `grain.MapDataset.source(graphs).shuffle(0).batch(n, batch_fn=buckets.collate)`.
    """

    nodes: tuple[int, ...]
    edges: tuple[int, ...]
    graphs: int

    @classmethod
    def of(cls, graphs: Sequence[GraphsTuple], batch_size: int, count: int = 4) -> "Buckets":
        """`count` buckets, each half of the next; any `batch_size` of the graphs fit into the last.

        Raises:
            UsageError: batch_size or count is not positive.
            DataError: there is no graph.
        """
        if batch_size < 1 or count < 1:
            raise UsageError(f"batch_size {batch_size} and count {count} must be positive")
        if not graphs:
            raise DataError("buckets need at least one graph")
        most = [
            sum(sorted((int(s.sum()) for s in sizes), reverse=True)[:batch_size])
            for sizes in ([g.n_node for g in graphs], [g.n_edge for g in graphs])
        ]
        per_graph = max(len(g.n_node) for g in graphs)
        shapes = sorted({(_round_up(most[0] / 2**i + 1), _round_up(most[1] / 2**i)) for i in range(count)})
        nodes, edges = zip(*shapes, strict=True)
        return cls(nodes, edges, batch_size * per_graph + 1)

    def collate(self, graphs: Sequence[GraphsTuple]) -> GraphsTuple:
        """The graphs as one, padded to the first bucket it fits into.

        Raises:
            DataError: it fits into none.
        """
        joined = batch(graphs)
        nodes, edges = int(joined.n_node.sum()) + 1, int(joined.n_edge.sum())
        fit = (s for s in zip(self.nodes, self.edges, strict=True) if nodes <= s[0] and edges <= s[1])
        return pad(joined, *next(fit, (self.nodes[-1], self.edges[-1])), self.graphs)

    def batches(
        self, graphs: Sequence[GraphsTuple], batch_size: int, seed: int | None = None
    ) -> Iterator[GraphsTuple]:
        """All graphs once, collated, shuffled if a seed is given; the last batch may have fewer."""
        order = np.arange(len(graphs))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(order), batch_size):
            yield self.collate([graphs[i] for i in order[start : start + batch_size]])


def _int32(graph: GraphsTuple) -> GraphsTuple:
    """The ids and sizes as int32; jraph makes them int64."""
    sizes = ("senders", "receivers", "n_node", "n_edge")
    return graph._replace(**{k: np.asarray(getattr(graph, k), np.int32) for k in sizes})


def _num_nodes(graph: GraphsTuple) -> int:
    leaves = jax.tree.leaves(graph.nodes)
    if not leaves:
        raise DataError("the graph holds no node features, so that its number of nodes is not static")
    return leaves[0].shape[0]


def _real_rows(size: int, counts: np.ndarray | jax.Array, graph: GraphsTuple) -> jax.Array:
    """(size,) True at the first rows, as many as the graphs that are not padding have by `counts` (G,)."""
    graphs = jnp.asarray(graph.n_node).shape[0]
    padding = jraph.get_number_of_padding_with_graphs_graphs(graph._replace(n_node=jnp.asarray(graph.n_node)))
    real = jnp.arange(graphs, dtype=jnp.int32) < graphs - padding.astype(jnp.int32)
    total = jnp.where(real, jnp.asarray(counts).astype(jnp.int32), 0).sum(dtype=jnp.int32)
    return jnp.arange(size, dtype=jnp.int32) < total


def _round_up(size: float) -> int:
    """The next multiple of 8."""
    return int(-(-size // 8) * 8)
