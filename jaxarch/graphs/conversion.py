"""Graphs from edge lists, and to and from networkx and PyTorch Geometric (PyG)."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jraph import GraphsTuple

from jaxarch.arrays import as_numpy
from jaxarch.errors import DataError, UsageError, require, require_torch
from jaxarch.graphs.padding import unbatch
from jaxarch.graphs.tuples import Arrays, make_graph

if TYPE_CHECKING:
    from networkx import Graph, MultiDiGraph
    from torch_geometric.data import Data


def from_edges(
    pairs: Iterable[Sequence[int]],
    *,
    undirected: bool = False,
    num_nodes: int | None = None,
    nodes: Arrays | None = None,
    edges: Arrays | None = None,
) -> GraphsTuple:
    """A graph from (source, target) pairs; `undirected` adds the reverse of each but self loops, after them.

    Without num_nodes and node features the highest id decides how many nodes there are.
    """
    index = np.array([tuple(p) for p in pairs], np.int64).reshape(-1, 2).T
    features = {k: np.asarray(v) for k, v in (edges or {}).items()}
    if num_nodes is None and not nodes:
        num_nodes = int(index.max(initial=-1)) + 1
    if undirected:
        no_loop = index[0] != index[1]
        index = np.concatenate([index, index[::-1, no_loop]], 1)
        features = {k: np.concatenate([v, v[no_loop]]) for k, v in features.items()}
    return make_graph(index, nodes=nodes, edges=features, num_nodes=num_nodes)


def from_networkx(graph: "Graph", nodes: Sequence[str] = (), edges: Sequence[str] = ()) -> GraphsTuple:
    """A networkx graph of any kind, with the attributes named; nodes in the order of `graph.nodes`.

    An edge of an undirected graph becomes two directed ones, a self loop one.

    Raises:
        DataError: a node or edge lacks an attribute.
    """
    index_of = {node: i for i, node in enumerate(graph.nodes)}
    links = list(graph.edges(data=True))
    attributes = {"node": list(graph.nodes(data=True)), "edge": [((u, v), data) for u, v, data in links]}
    for what, names in (("node", nodes), ("edge", edges)):
        for name in names:
            if missing := [key for key, data in attributes[what] if name not in data]:
                raise DataError(f"{what} {missing[0]!r} has no attribute {name!r}")
    return from_edges(
        [(index_of[u], index_of[v]) for u, v, _ in links],
        undirected=not graph.is_directed(),
        num_nodes=len(index_of),
        nodes={k: np.asarray([d[k] for _, d in graph.nodes(data=True)]) for k in nodes},
        edges={k: np.asarray([d[k] for _, _, d in links]) for k in edges},
    )


def to_networkx(graph: GraphsTuple) -> "MultiDiGraph":
    """A networkx.MultiDiGraph with the features as attributes; a batch becomes one graph of many components."""
    networkx = require("networkx", "graph", "to_networkx")

    def attributes(part: Arrays | None, i: int) -> dict[str, Any]:
        return {k: np.asarray(v)[i] for k, v in (part or {}).items()}

    result = networkx.MultiDiGraph()
    result.add_nodes_from((i, attributes(graph.nodes, i)) for i in range(int(graph.n_node.sum())))
    ends = zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)
    result.add_edges_from((u, v, attributes(graph.edges, i)) for i, (u, v) in enumerate(ends))
    return result


def from_pyg(data: "Data") -> GraphsTuple:
    """A PyG `Data`, or a `Batch`; every tensor becomes a feature of the nodes, the edges or the graphs.

    Raises:
        DataError: a tensor belongs to none of them, or the edges of a batch are not in the order of its graphs.
    """
    index = as_numpy(data.edge_index)
    count, structure = int(data.num_nodes), ("edge_index", "batch", "ptr")
    n_node, n_edge = np.asarray([count]), np.asarray([index.shape[1]])
    if getattr(data, "batch", None) is not None:
        n_node = np.bincount(as_numpy(data.batch), minlength=int(data.num_graphs))
        graph_of_edge = as_numpy(data.batch)[index[1]]
        if (np.diff(graph_of_edge) < 0).any():
            raise DataError("the edges of a batch must be in the order of its graphs")
        n_edge = np.bincount(graph_of_edge, minlength=len(n_node))
    parts: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for key, value in data.to_dict().items():
        if key in structure or not hasattr(value, "detach"):
            continue
        array = as_numpy(value)
        size, graphs = len(array) if array.ndim else None, len(n_node)
        # PyG decides by size, edges before graphs; here only a name that begins with edge_ comes first.
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


def to_pyg(graph: GraphsTuple) -> "Data":
    """A PyG `Data`, or a `Batch` of several.

    Raises:
        UsageError: torch or torch_geometric is not installed.
    """
    torch = require_torch("to_pyg")
    try:
        from torch_geometric.data import Batch, Data
    except ModuleNotFoundError:
        raise UsageError("to_pyg needs PyTorch Geometric: pip install torch_geometric") from None

    def one(g: GraphsTuple) -> "Data":
        index = torch.from_numpy(np.stack([g.senders, g.receivers]).astype(np.int64))
        features = {k: v for part in (g.nodes, g.edges, g.globals) for k, v in (part or {}).items()}
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in features.items()}
        return Data(edge_index=index, num_nodes=int(g.n_node.sum()), **tensors)

    return one(graph) if len(graph.n_node) == 1 else Batch.from_data_list([one(g) for g in unbatch(graph)])
