"""A GraphsTuple from arrays, and a model's call on one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jraph import GraphsTuple
from numpy.typing import ArrayLike

from jaxarch.errors import DataError

Arrays = Mapping[str, np.ndarray]


def make_graph(
    edge_index: ArrayLike,
    *,
    nodes: Arrays | None = None,
    edges: Arrays | None = None,
    globals: Arrays | None = None,
    num_nodes: int | None = None,
    n_node: ArrayLike | None = None,
    n_edge: ArrayLike | None = None,
) -> GraphsTuple:
    """A graph, or several if their sizes are given, from arrays.

    Args:
        edge_index: (2, E) node ids, sources above targets; with several graphs, ids count through all of them.
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
    nodes_of = np.asarray([count] if n_node is None else n_node, np.int32)
    edges_of = np.asarray([index.shape[1]] if n_edge is None else n_edge, np.int32)
    sizes = (count, index.shape[1], len(nodes_of))
    for what, part, size in zip(("nodes", "edges", "globals"), parts, sizes, strict=True):
        for name, value in part.items():
            if len(value) != size:
                raise DataError(f"{what} {name!r} has {len(value)} rows, the graph {size}")
    total = nodes_of.sum(), edges_of.sum()
    if total != (count, index.shape[1]) or len(nodes_of) != len(edges_of):
        raise DataError(
            f"n_node {nodes_of.tolist()} and n_edge {edges_of.tolist()} must add up to {count} nodes "
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
        n_node=nodes_of,
        n_edge=edges_of,
    )


def edge_index(graph: GraphsTuple) -> jax.Array:
    """PyG's (2, E): senders above receivers."""
    return jnp.stack([jnp.asarray(graph.senders), jnp.asarray(graph.receivers)])


def apply(model: Callable[..., Any], graph: GraphsTuple) -> Any:
    """The model's outputs for a graph; its arguments are looked up by name. Works under jit.

    Raises:
        DataError: an argument without a default that the graph does not have.
    """
    arrays = {"edge_index": edge_index(graph), "n_node": jnp.asarray(graph.n_node)}
    for part in (graph.nodes, graph.edges, graph.globals):
        arrays |= {k: jnp.asarray(v) for k, v in (part or {}).items()}
    call = model if inspect.isroutine(model) else type(model).__call__
    arguments = {}
    for name, parameter in inspect.signature(call).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name in arrays:
            arguments[name] = arrays[name]
        elif parameter.default is parameter.empty:
            raise DataError(f"the model needs {name!r}, the graph has {', '.join(sorted(arrays))}")
    return model(**arguments)
