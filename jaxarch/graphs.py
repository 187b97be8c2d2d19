"""Graphs as `jraph.GraphsTuple`: in and out, batched, padded to few shapes, sampled, spread over devices.

Nodes, edges and globals are mappings from names to arrays, so that `apply` can hand a model the arguments that
it names: `x`, `edge_index`, `edge_attr`, `n_node`. Everything but `apply`, `spread` and the masks is numpy, on
the host. Messages go from `senders` to `receivers`, the two rows of PyG's `edge_index`.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jraph import GraphsTuple

from jaxarch.errors import DataError, UsageError, require_torch

Arrays = Mapping[str, np.ndarray]


def make_graph(
    edge_index: Any,
    *,
    nodes: Arrays | None = None,
    edges: Arrays | None = None,
    globals: Arrays | None = None,
    num_nodes: int | None = None,
    n_node: Any = None,
    n_edge: Any = None,
) -> GraphsTuple:
    """A graph, or several if their sizes are given, from arrays.

    Args:
        edge_index: (2, E) node ids, source above target; of several graphs counted through.
        nodes, edges, globals: features by name; leading sizes N, E and G.
        num_nodes: N; needed only without node features.
        n_node, n_edge: (G,) sizes of several graphs, their nodes and edges in order.

    Raises:
        DataError: sizes that do not fit, or an edge index out of range.
    """
    index = np.asarray(edge_index)
    if index.size == 0:
        index = np.zeros((2, 0), np.int32)
    if index.ndim != 2 or index.shape[0] != 2 or index.dtype.kind not in "iu":
        raise DataError(f"edge_index must be integers (2, E), not {index.dtype} {index.shape}")
    parts = [{k: np.asarray(v) for k, v in (p or {}).items()} for p in (nodes, edges, globals)]
    count = len(next(iter(parts[0].values()))) if parts[0] else num_nodes
    if count is None:
        raise DataError("a graph without node features needs num_nodes")
    sizes = np.asarray([count] if n_node is None else n_node, np.int32)
    ends = np.asarray([index.shape[1]] if n_edge is None else n_edge, np.int32)
    for what, part, size in zip(
        ("nodes", "edges", "globals"), parts, (count, index.shape[1], len(sizes)), strict=True
    ):
        for name, value in part.items():
            if len(value) != size:
                raise DataError(f"{what} {name!r} has {len(value)} rows, the graph {size}")
    if sizes.sum() != count or ends.sum() != index.shape[1] or len(sizes) != len(ends):
        raise DataError(
            f"n_node {sizes.tolist()} and n_edge {ends.tolist()} must add up to {count} nodes "
            f"and {index.shape[1]} edges"
        )
    bad = index[(index < 0) | (index >= count)]
    if bad.size:
        raise DataError(f"edge index {bad[0]} is out of range: it must be in [0, {count})")
    index = index.astype(np.int32)
    return GraphsTuple(
        nodes=parts[0],
        edges=parts[1],
        globals=parts[2],
        senders=index[0],
        receivers=index[1],
        n_node=sizes,
        n_edge=ends,
    )


def edge_index(graph: GraphsTuple) -> jax.Array:
    """PyG's (2, E): senders above receivers."""
    return jnp.stack([jnp.asarray(graph.senders), jnp.asarray(graph.receivers)])


def apply(model: Callable[..., Any], graph: GraphsTuple) -> Any:
    """The model's outputs for a graph; its arguments are looked up by name. Works under jit.

    Raises:
        DataError: an argument without a default that the graph does not hold.
    """
    held = {"edge_index": edge_index(graph), "n_node": jnp.asarray(graph.n_node)}
    for part in (graph.nodes, graph.edges, graph.globals):
        held |= {k: jnp.asarray(v) for k, v in (part or {}).items()}
    call = model if inspect.isroutine(model) else type(model).__call__
    found = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name in held:
            found[name] = held[name]
        elif parameter.default is parameter.empty:
            raise DataError(f"the model needs {name!r}, the graph has {', '.join(sorted(held))}")
    return model(**found)


# ------------------------------------------------------------------------------------- batching and padding


def batch(graphs: Sequence[GraphsTuple]) -> GraphsTuple:
    """Several graphs as one; the node ids of each are counted on from those before.

    Raises:
        DataError: there is none, or they do not hold the same features.
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
    """The graph filled up to static sizes by jraph: a graph of padding nodes and edges, then empty graphs.

    It touches no real node, so outputs and gradients stay as they are. At least one node and one graph are
    padding.

    Raises:
        DataError: the graph does not fit.
    """
    have = int(graph.n_node.sum()) + 1, int(graph.n_edge.sum()), len(graph.n_node) + 1
    if any(h > s for h, s in zip(have, (nodes, edges, graphs), strict=True)):
        raise DataError(
            f"a graph that with its padding has {have[0]} nodes, {have[1]} edges and {have[2]} graphs "
            f"does not fit into {nodes}, {edges} and {graphs}"
        )
    return _int32(jraph.pad_with_graphs(graph, nodes, edges, graphs))


def unpad(graph: GraphsTuple) -> GraphsTuple:
    """The graph without its padding."""
    return _int32(jraph.unpad_with_graphs(graph))


def node_mask(graph: GraphsTuple) -> jax.Array:
    """(N,) True at the nodes of a padded graph that are real."""
    return _first(_num_nodes(graph), graph.n_node, graph)


def edge_mask(graph: GraphsTuple) -> jax.Array:
    """(E,) True at the edges of a padded graph that are real."""
    return _first(graph.senders.shape[0], graph.n_edge, graph)


def graph_mask(graph: GraphsTuple) -> jax.Array:
    """(G,) True at the graphs of a padded batch that are real."""
    return _first(graph.n_node.shape[0], jnp.ones_like(graph.n_node), graph)


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
        """`count` buckets, each half of the next; into the last any `batch_size` of the graphs fit.

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
        shapes = sorted({(_rounded(most[0] / 2**i + 1), _rounded(most[1] / 2**i)) for i in range(count)})
        nodes, edges = zip(*shapes, strict=True)
        return cls(nodes, edges, batch_size * per_graph + 1)

    def collate(self, graphs: Sequence[GraphsTuple]) -> GraphsTuple:
        """The graphs as one, padded to the first bucket that holds it.

        Raises:
            DataError: it fits into none.
        """
        joined = batch(graphs)
        nodes, edges = int(joined.n_node.sum()) + 1, int(joined.n_edge.sum())
        fit = (s for s in zip(self.nodes, self.edges, strict=True) if nodes <= s[0] and edges <= s[1])
        return pad(joined, *next(fit, (self.nodes[-1], self.edges[-1])), self.graphs)

    def batches(
        self, graphs: Sequence[GraphsTuple], batch_size: int, seed: int | None = None
    ) -> Iterable[GraphsTuple]:
        """All graphs once, collated, shuffled if a seed is given; the last batch may hold fewer."""
        order = np.arange(len(graphs))
        if seed is not None:
            np.random.default_rng(seed).shuffle(order)
        for start in range(0, len(order), batch_size):
            yield self.collate([graphs[i] for i in order[start : start + batch_size]])


# ------------------------------------------------------------------------------------- a graph that is large


def sort_edges(graph: GraphsTuple) -> GraphsTuple:
    """The same graph with its edges sorted by receiver, as `indices_are_sorted` promises."""
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
        fanouts: for each hop outwards how many of the edges into a node are drawn, without replacement;
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

    def sample(self, seeds: Any, seed: int = 0) -> GraphsTuple:
        """The subgraph of the seeds, which are its first nodes, in order.

        `nodes["node_id"]` and `edges["edge_id"]` say what everything was in the whole graph.

        Raises:
            DataError: a seed is out of range or given twice.
        """
        rng, total = np.random.default_rng(seed), len(self.starts) - 1
        seeds = np.asarray(seeds, np.int64).reshape(-1)
        if len(np.unique(seeds)) != len(seeds) or ((seeds < 0) | (seeds >= total)).any():
            raise DataError(f"seeds must be different nodes in [0, {total})")
        known, frontier, taken = seeds, seeds, [np.zeros(0, np.int64)]
        for fanout in self.fanouts:
            edges = self._drawn(frontier, fanout, rng)
            taken.append(edges)
            sources = self.graph.senders[edges]
            _, first = np.unique(sources, return_index=True)
            sources = sources[np.sort(first)]
            frontier = sources[~np.isin(sources, known)]
            known = np.concatenate([known, frontier])
        edges = np.concatenate(taken)
        place = np.full(total, -1)
        place[known] = np.arange(len(known))
        ends = np.stack([place[self.graph.senders[edges]], place[self.graph.receivers[edges]]])
        nodes = {k: np.asarray(v)[known] for k, v in (self.graph.nodes or {}).items()}
        features = {k: np.asarray(v)[edges] for k, v in (self.graph.edges or {}).items()}
        return make_graph(ends, nodes={**nodes, "node_id": known}, edges={**features, "edge_id": edges})

    def _drawn(self, targets: np.ndarray, fanout: int, rng: np.random.Generator) -> np.ndarray:
        """Edges into the targets: at most `fanout` of each, all of them for -1."""
        starts, counts = self.starts[targets], self.starts[targets + 1] - self.starts[targets]
        group = np.repeat(np.arange(len(targets)), counts)
        within = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
        edges = self.order[starts[group] + within]
        if fanout == -1:
            return edges
        # Within each group the random keys' order is a random permutation, of which the first are kept.
        shuffled = np.lexsort((rng.random(len(group)), group))
        return edges[np.sort(shuffled[within < fanout])]


def spread(graph: GraphsTuple, mesh: Mesh, axes: Sequence[str] | None = None) -> GraphsTuple:
    """The graph on the devices of a mesh: edges divided among them, nodes and graphs on each.

    Under jit every device then sends the messages of its own edges, and the partial segment sums are added
    over the devices. The edges are padded to a multiple of the devices, with a padding graph.
    """
    axes = tuple(mesh.axis_names) if axes is None else tuple(axes)
    devices = int(np.prod([mesh.shape[a] for a in axes]))
    nodes, edges = int(graph.n_node.sum()), int(graph.n_edge.sum())
    padded = pad(graph, nodes + 1, -(-edges // devices) * devices, len(graph.n_node) + 1)
    divided = NamedSharding(mesh, PartitionSpec(axes))
    whole = NamedSharding(mesh, PartitionSpec())
    places = GraphsTuple(whole, divided, divided, divided, whole, whole, whole)
    return GraphsTuple(*(jax.device_put(v, p) for v, p in zip(padded, places, strict=True)))


# --------------------------------------------------------------------------------------------- other formats


def from_edges(
    pairs: Iterable[Sequence[int]],
    *,
    undirected: bool = False,
    num_nodes: int | None = None,
    nodes: Arrays | None = None,
    edges: Arrays | None = None,
) -> GraphsTuple:
    """A graph from (source, target) pairs; `undirected` adds the reverse of each but self loops, after them.

    Without num_nodes and node features there are as many nodes as the highest id needs.
    """
    index = np.array([tuple(p) for p in pairs], np.int64).reshape(-1, 2).T
    features = {k: np.asarray(v) for k, v in (edges or {}).items()}
    if num_nodes is None and not nodes:
        num_nodes = int(index.max(initial=-1)) + 1
    if undirected:
        other = index[0] != index[1]
        index = np.concatenate([index, index[::-1, other]], 1)
        features = {k: np.concatenate([v, v[other]]) for k, v in features.items()}
    return make_graph(index, nodes=nodes, edges=features, num_nodes=num_nodes)


def from_networkx(graph: Any, nodes: Sequence[str] = (), edges: Sequence[str] = ()) -> GraphsTuple:
    """A networkx graph of any kind, with the attributes named; nodes in the order of `graph.nodes`.

    Edges of an undirected graph go both ways, self loops once.

    Raises:
        DataError: a node or edge lacks an attribute.
    """
    places = {node: i for i, node in enumerate(graph.nodes)}
    links = list(graph.edges(data=True))
    held = {"node": list(graph.nodes(data=True)), "edge": [((u, v), data) for u, v, data in links]}
    for what, names in (("node", nodes), ("edge", edges)):
        for name in names:
            if lacking := [key for key, data in held[what] if name not in data]:
                raise DataError(f"{what} {lacking[0]!r} has no attribute {name!r}")
    return from_edges(
        [(places[u], places[v]) for u, v, _ in links],
        undirected=not graph.is_directed(),
        num_nodes=len(places),
        nodes={k: np.asarray([d[k] for _, d in graph.nodes(data=True)]) for k in nodes},
        edges={k: np.asarray([d[k] for _, _, d in links]) for k in edges},
    )


def to_networkx(graph: GraphsTuple) -> Any:
    """A networkx.MultiDiGraph with the features as attributes; of a batch one graph of many components."""
    import networkx

    def held(part, i):
        return {k: np.asarray(v)[i] for k, v in (part or {}).items()}

    result = networkx.MultiDiGraph()
    result.add_nodes_from((i, held(graph.nodes, i)) for i in range(int(graph.n_node.sum())))
    ends = zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)
    result.add_edges_from((u, v, held(graph.edges, i)) for i, (u, v) in enumerate(ends))
    return result


def from_pyg(data: Any) -> GraphsTuple:
    """A PyG `Data`, or a `Batch`; every tensor becomes a feature of the nodes, the edges or the graphs.

    Raises:
        DataError: a tensor belongs to none of them, or the edges of a batch are not in its graphs' order.
    """
    from jaxarch.arrays import as_numpy

    index = as_numpy(data.edge_index)
    count, own = int(data.num_nodes), ("edge_index", "batch", "ptr")
    n_node, n_edge = np.asarray([count]), np.asarray([index.shape[1]])
    if getattr(data, "batch", None) is not None:
        n_node = np.bincount(as_numpy(data.batch), minlength=int(data.num_graphs))
        of_edge = as_numpy(data.batch)[index[1]]
        if (np.diff(of_edge) < 0).any():
            raise DataError("the edges of a batch must be in the order of its graphs")
        n_edge = np.bincount(of_edge, minlength=len(n_node))
    parts: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for key, value in data.to_dict().items():
        if key in own or not hasattr(value, "detach"):
            continue
        array = as_numpy(value)
        size, graphs = len(array) if array.ndim else None, len(n_node)
        # PyG guesses by size, edges before graphs; here a name that says edge is needed to be taken first.
        if size == index.shape[1] and key.startswith("edge_"):
            parts[1][key] = array
        elif size == count and (count != graphs or data.is_node_attr(key)):
            parts[0][key] = array
        elif size == graphs:
            parts[2][key] = array
        elif size == index.shape[1]:
            parts[1][key] = array
        else:
            raise DataError(f"PyG's {key!r} of shape {array.shape} is neither of nodes, edges nor graphs")
    return make_graph(
        index,
        nodes=parts[0],
        edges=parts[1],
        globals=parts[2],
        num_nodes=count,
        n_node=n_node,
        n_edge=n_edge,
    )


def to_pyg(graph: GraphsTuple) -> Any:
    """A PyG `Data`, or a `Batch` of several.

    Raises:
        UsageError: torch or torch_geometric is not installed.
    """
    torch = require_torch("to_pyg")
    try:
        from torch_geometric.data import Batch, Data
    except ModuleNotFoundError:
        raise UsageError("to_pyg needs PyTorch Geometric: pip install torch_geometric") from None

    def one(g):
        index = torch.from_numpy(np.stack([g.senders, g.receivers]).astype(np.int64))
        held = {k: v for part in (g.nodes, g.edges, g.globals) for k, v in (part or {}).items()}
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in held.items()}
        return Data(edge_index=index, num_nodes=int(g.n_node.sum()), **tensors)

    return one(graph) if len(graph.n_node) == 1 else Batch.from_data_list([one(g) for g in unbatch(graph)])


def _int32(graph: GraphsTuple) -> GraphsTuple:
    """The ids and sizes as int32, which jraph widens."""
    sizes = ("senders", "receivers", "n_node", "n_edge")
    return graph._replace(**{k: np.asarray(getattr(graph, k), np.int32) for k in sizes})


def _num_nodes(graph: GraphsTuple) -> int:
    leaves = jax.tree.leaves(graph.nodes)
    if not leaves:
        raise DataError("the graph holds no node features, so that its number of nodes is not static")
    return leaves[0].shape[0]


def _first(size: int, counts: Any, graph: GraphsTuple) -> jax.Array:
    """True at the first of `size` rows, as many as the graphs that are not padding have in all."""
    graphs = jnp.asarray(graph.n_node).shape[0]
    padding = jraph.get_number_of_padding_with_graphs_graphs(graph._replace(n_node=jnp.asarray(graph.n_node)))
    real = jnp.arange(graphs, dtype=jnp.int32) < graphs - padding.astype(jnp.int32)
    total = jnp.where(real, jnp.asarray(counts).astype(jnp.int32), 0).sum(dtype=jnp.int32)
    return jnp.arange(size, dtype=jnp.int32) < total


def _rounded(size: float) -> int:
    """The next multiple of 8."""
    return int(-(-size // 8) * 8)
