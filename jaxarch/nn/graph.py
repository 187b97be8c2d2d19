"""Message passing on graphs: PyTorch Geometric's convolutions and pools.

A graph is PyG's: `edge_index` (2, E) holds source above target, messages go from source to target, parallel
edges and self loops count. Indices out of range are an error outside jit, and under jit the result is NaN:
JAX itself would drop them in silence. Sums are taken in float32 at least.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.arrays import as_numpy
from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.activation import leaky_relu
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.embedding import check_ids
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.kernels.edge_sums import weighted_sum
from jaxarch.nn.kernels.segments import SEGMENTS, rows, segment_exp, segment_max, segment_mean, segment_sum
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module, optional


def graph_ids(n_node: Int[Array, " g"], num_nodes: int) -> Int[Array, " n"]:
    """PyG's `batch`, the graph of each node, from jraph's `n_node`, the nodes of each graph (0 is allowed).

    Raises:
        DataError: outside jit, a count is negative or they do not add up to the nodes. Under jit nodes
            beyond the sum belong to no graph.
    """
    if not isinstance(n_node, jax.core.Tracer):
        counts = np.asarray(n_node)
        if (counts < 0).any() or counts.sum() != num_nodes:
            raise DataError(f"n_node {counts.tolist()} must add up to the {num_nodes} nodes of x")
    ends = jnp.cumsum(n_node, dtype=n_node.dtype)
    return jnp.searchsorted(ends, jnp.arange(num_nodes, dtype=n_node.dtype), side="right").astype(
        n_node.dtype
    )


def graph_inputs(
    x: Any, edge_index: Int[Array, "2 e"] | None, n_node: Int[Array, " g"] | None = None
) -> tuple[Float[Array, "n f"], Int[Array, "2 e"], Int[Array, " g"] | None]:
    """(x, edge_index, n_node), or those of one object in the place of x.

    It is a graph or batch in the form of PyG's Data (`x`, `edge_index`, `batch`; arrays or tensors) or of
    jraph's GraphsTuple (`nodes`, `senders`, `receivers`, `n_node`).

    Raises:
        UsageError: it has neither form; under jit, a graph with `batch`, of which the number of graphs is unknown.
    """
    if edge_index is not None:
        return x, edge_index, n_node
    if hasattr(x, "senders"):
        return jnp.asarray(x.nodes), jnp.stack([x.senders, x.receivers]), jnp.asarray(x.n_node)
    if not hasattr(x, "edge_index"):
        raise UsageError("edge_index is missing: give x and edge_index, or a graph that holds both")
    if isinstance(batch := getattr(x, "batch", None), jax.core.Tracer):
        raise UsageError("under jit the number of graphs must be known: give x, edge_index and n_node")
    if batch is not None:
        n_node = jnp.asarray(np.bincount(as_numpy(batch)).astype(np.int32))
    nodes, edges = (v if isinstance(v, Array) else jnp.asarray(as_numpy(v)) for v in (x.x, x.edge_index))
    return nodes, edges, n_node


def global_add_pool(
    x: Float[Array, "n f"], batch: Int[Array, " n"] | None = None, size: int | None = None
) -> Float[Array, "g f"]:
    """The sum of the nodes of each graph; `batch` as PyG's, None is one graph. Empty graphs give 0.

    Raises:
        UsageError: under jit, `batch` without `size`, the number of graphs.
        DataError: outside jit, a graph id is out of range.
    """
    return _pooled(segment_sum, x, batch, size)


def global_mean_pool(
    x: Float[Array, "n f"], batch: Int[Array, " n"] | None = None, size: int | None = None
) -> Float[Array, "g f"]:
    """The mean of the nodes of each graph; as `global_add_pool`."""
    return _pooled(segment_mean, x, batch, size)


def global_max_pool(
    x: Float[Array, "n f"], batch: Int[Array, " n"] | None = None, size: int | None = None
) -> Float[Array, "g f"]:
    """The maximum over the nodes of each graph; as `global_add_pool`."""
    return _pooled(segment_max, x, batch, size)


def mean_of_neighbours(
    x: Float[Array, "n f"], edge_index: Int[Array, "2 e"], *, indices_are_sorted: bool = False
) -> Float[Array, "n f"]:
    """The mean of the features of the sources of each node's edges; 0 for a node without.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """
    check_ids(edge_index, x.shape[0], "edge index")
    y = segment_mean(rows(x, edge_index[0]), edge_index[1], x.shape[0], indices_are_sorted=indices_are_sorted)
    return or_nan(y, edge_index, x.shape[0])


def edge_inputs(
    x: Float[Array, "n f"], edge_index: Int[Array, "2 e"], edge_attr: Float[Array, "e d"]
) -> Float[Array, "e g"]:
    """For each edge the features of its target, its source and itself, joined.

    Raises:
        DataError: outside jit, an edge index is out of range.
    """
    check_ids(edge_index, x.shape[0], "edge index")
    ends = rows(x, edge_index[1]), rows(x, edge_index[0])
    return or_nan(jnp.concatenate([*ends, edge_attr], 1), edge_index, x.shape[0])


def all_pairs(x: Float[Array, "*b n f"]) -> Float[Array, "*b n n g"]:
    """For each pair of nodes the features of both, joined; memory N^2 times twice the features."""
    shape = (*x.shape[:-1], x.shape[-2], x.shape[-1])
    return jnp.concatenate(
        [jnp.broadcast_to(x[..., :, None, :], shape), jnp.broadcast_to(x[..., None, :, :], shape)], -1
    )


def or_nan(y: Float[Array, "*shape"], ids: Int[Array, "..."], size: int) -> Float[Array, "*shape"]:
    """y, or NaN in all of it if an id is outside [0, size): what `check_ids` cannot see under jit."""
    return jnp.where(((ids >= 0) & (ids < size)).all(), y, jnp.nan)


class GCNConv(Module):
    """Graph convolution with symmetric normalisation (Kipf and Welling 2017, arXiv:1609.02907).

    x (N, in_channels), edge_index (2, E), edge_weight (E,) or None -> (N, out_channels). PyG's GCNConv:
    every node has one self loop, of weight 1 (2 if `improved`) unless the graph has one (of several
    the last); the inverse root of a degree 0 is 0. `indices_are_sorted` promises sorted targets.

    Raises:
        UsageError: add_self_loops without normalize.
        DataError: outside jit, an edge index is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        if add_self_loops and not normalize:
            raise UsageError("add_self_loops needs normalize: without it GCNConv only sums")
        self.improved, self.normalize = improved, normalize
        self.add_self_loops = normalize if add_self_loops is None else add_self_loops
        self.lin = init.initialized(Linear(in_channels, out_channels, False, rngs=rngs), "xavier", rngs=rngs)
        self.bias = optional(jnp.zeros(out_channels, init.float_dtype()) if bias else None)

    def __call__(
        self,
        x: Float[Array, "n i"],
        edge_index: Int[Array, "2 e"],
        edge_weight: Float[Array, " e"] | None = None,
        *,
        indices_are_sorted: bool = False,
    ) -> Float[Array, "n o"]:
        check_ids(edge_index, x.shape[0], "edge index")
        nodes, (source, target) = x.shape[0], (edge_index[0], edge_index[1])
        dtype = accumulation_dtype(x.dtype)
        weight = jnp.ones(target.shape, dtype) if edge_weight is None else edge_weight.astype(dtype)
        loop = jnp.zeros(nodes, dtype)
        if self.add_self_loops:
            is_loop = source == target
            order = jnp.where(is_loop, jnp.arange(target.size), -1)
            last = jnp.full(nodes, -1, order.dtype).at[target].max(order)
            loop = jnp.full(nodes, 2.0 if self.improved else 1.0, dtype)
            if target.size:
                loop = jnp.where(last >= 0, rows(weight, last), loop)
            weight = jnp.where(is_loop, 0, weight)
        if self.normalize:
            degree = segment_sum(weight, target, nodes, indices_are_sorted=indices_are_sorted) + loop
            inverse = jnp.where(degree == 0, 0, jnp.where(degree == 0, 1, degree) ** -0.5)
            weight = rows(inverse, source) * weight * rows(inverse, target)
            loop = inverse * loop * inverse
        h = self.lin(x)
        sums = weighted_sum(weight[:, None], h[:, None], edge_index, indices_are_sorted=indices_are_sorted)
        y = sums[:, 0].astype(h.dtype)
        if self.add_self_loops:
            y = y + loop.astype(h.dtype)[:, None] * h
        y = or_nan(y, edge_index, nodes)
        return y if self.bias is None else y + self.bias[...]


class GATConv(Module):
    """Graph attention (Velickovic et al. 2018, arXiv:1710.10903).

    x (N, in_channels), edge_index (2, E), edge_attr (E, edge_dim) -> (N, heads * out_channels), or the mean
    over the heads (N, out_channels) without `concat`. PyG's GATConv: self loops in the graph are replaced by
    one per node, whose features are `fill_value` or that aggregation of the features of the edges into it.
    Dropout acts on the attention weights, of the edges and then of the loops. `indices_are_sorted` promises
    sorted targets.

    Raises:
        UsageError: unknown fill_value.
        DataError: edge_attr without edge_dim or the reverse; outside jit, an edge index is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | str = "mean",
        bias: bool = True,
        residual: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if isinstance(fill_value, str) and fill_value not in SEGMENTS:
            raise unknown("fill_value", fill_value, SEGMENTS)
        self.out_channels, self.heads, self.concat = out_channels, heads, concat
        self.negative_slope, self.add_self_loops = negative_slope, add_self_loops
        self.edge_dim, self.fill_value = edge_dim, fill_value
        width, total = heads * out_channels, out_channels * (heads if concat else 1)
        self.lin = init.initialized(Linear(in_channels, width, False, rngs=rngs), "xavier", rngs=rngs)
        self.att_src = nnx.Param(glorot(rngs.params(), (1, heads, out_channels)))
        self.att_dst = nnx.Param(glorot(rngs.params(), (1, heads, out_channels)))
        if edge_dim is not None:
            self.lin_edge = init.initialized(Linear(edge_dim, width, False, rngs=rngs), "xavier", rngs=rngs)
            self.att_edge = nnx.Param(glorot(rngs.params(), (1, heads, out_channels)))
        if residual:
            self.res = init.initialized(Linear(in_channels, total, False, rngs=rngs), "xavier", rngs=rngs)
        self.residual = residual
        self.bias = optional(jnp.zeros(total, init.float_dtype()) if bias else None)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "n i"],
        edge_index: Int[Array, "2 e"],
        edge_attr: Float[Array, "e d"] | None = None,
        *,
        indices_are_sorted: bool = False,
    ) -> Float[Array, "n o"]:
        if (edge_attr is None) != (self.edge_dim is None):
            raise DataError(f"edge_dim is {self.edge_dim}: edge_attr must be given with it and only with it")
        check_ids(edge_index, x.shape[0], "edge index")
        nodes, shape = x.shape[0], (-1, self.heads, self.out_channels)
        source, target = edge_index[0], edge_index[1]
        mask, loop_logits = None, None
        h = self.lin(x).reshape(shape)
        source_logits, target_logits = (h * self.att_src[...]).sum(-1), (h * self.att_dst[...]).sum(-1)
        logits = rows(source_logits, source) + rows(target_logits, target)
        if self.add_self_loops:
            mask, loop_logits = source != target, source_logits + target_logits
        if edge_attr is not None:
            logits = logits + self._edge_logits(edge_attr)
            if loop_logits is not None and isinstance(self.fill_value, str):
                aggregate = SEGMENTS[self.fill_value]
                loop_attr = aggregate(edge_attr, target, nodes, mask, indices_are_sorted=indices_are_sorted)
                loop_logits = loop_logits + self._edge_logits(loop_attr)
            elif loop_logits is not None and not isinstance(self.fill_value, str):
                loop_attr = jnp.full((1, edge_attr.shape[1]), self.fill_value, x.dtype)
                loop_logits = loop_logits + self._edge_logits(loop_attr)
        weights, loop, total = segment_exp(
            leaky_relu(logits, self.negative_slope),
            target,
            nodes,
            mask,
            None if loop_logits is None else leaky_relu(loop_logits, self.negative_slope),
            indices_are_sorted=indices_are_sorted,
        )
        y = weighted_sum(self.dropout(weights), h, edge_index, indices_are_sorted=indices_are_sorted)
        if loop is not None:
            y = y + self.dropout(loop)[..., None] * h.astype(y.dtype)
        # The softmax's division, once for each node instead of once for each edge.
        y = (y / total[..., None]).astype(x.dtype)
        y = y.reshape(nodes, -1) if self.concat else y.mean(1)
        y = or_nan(y, edge_index, nodes)
        if self.residual:
            y = y + self.res(x)
        return y if self.bias is None else y + self.bias[...]

    def _edge_logits(self, edge_attr: Float[Array, "m d"]) -> Float[Array, "m h"]:
        h = self.lin_edge(edge_attr).reshape(-1, self.heads, self.out_channels)
        return (h * self.att_edge[...]).sum(-1)


class RGCNConv(Module):
    """Relational graph convolution (Schlichtkrull et al. 2018, arXiv:1703.06103).

    x (N, in_channels), edge_index (2, E), edge_type (E,) in [0, num_relations) -> (N, out_channels): for
    each relation the aggregation ("mean", "add", "max") of the sources times the relation's matrix, and the
    node itself times `root`. The matrices are free, mixed from `num_bases` matrices by `comp`, or of
    `num_blocks` diagonal blocks. PyG's RGCNConv, all relations at once: takes memory N num_relations
    in_channels.

    Raises:
        UsageError: bases and blocks together, blocks that do not divide the channels, unknown aggr.
        DataError: outside jit, an edge index or relation is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_relations: int,
        num_bases: int | None = None,
        num_blocks: int | None = None,
        aggr: str = "mean",
        root_weight: bool = True,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        if num_bases is not None and num_blocks is not None:
            raise UsageError("num_bases and num_blocks exclude each other: give one")
        if num_blocks is not None and (in_channels % num_blocks or out_channels % num_blocks):
            raise UsageError(f"num_blocks {num_blocks} must divide {in_channels} and {out_channels} channels")
        if aggr not in SEGMENTS:
            raise unknown("aggr", aggr, SEGMENTS)
        self.out_channels, self.num_relations = out_channels, num_relations
        self.num_bases, self.num_blocks, self.aggr = num_bases, num_blocks, aggr
        shape: tuple[int, ...] = (
            num_relations if num_bases is None else num_bases,
            in_channels,
            out_channels,
        )
        if num_blocks is not None:
            shape = (num_relations, num_blocks, in_channels // num_blocks, out_channels // num_blocks)
        self.weight = nnx.Param(glorot(rngs.params(), shape))
        if num_bases is not None:
            self.comp = nnx.Param(glorot(rngs.params(), (num_relations, num_bases)))
        self.root = optional(glorot(rngs.params(), (in_channels, out_channels)) if root_weight else None)
        self.bias = optional(jnp.zeros(out_channels, init.float_dtype()) if bias else None)

    def __call__(
        self, x: Float[Array, "n i"], edge_index: Int[Array, "2 e"], edge_type: Int[Array, " e"]
    ) -> Float[Array, "n o"]:
        check_ids(edge_index, x.shape[0], "edge index")
        check_ids(edge_type, self.num_relations, "edge type")
        nodes, relations = x.shape[0], self.num_relations
        source, target = edge_index[0], edge_index[1]
        ids = target * relations + edge_type.astype(target.dtype)
        aggregated = SEGMENTS[self.aggr](rows(x, source), ids, nodes * relations)
        weight = self.weight[...]
        if self.num_bases is not None:
            weight = jnp.einsum("rb,bio->rio", self.comp[...], weight)
        if self.num_blocks is not None:
            blocks = aggregated.reshape(nodes, relations, self.num_blocks, -1)
            y = jnp.einsum("nrki,rkio->nko", blocks, weight).reshape(nodes, self.out_channels)
        else:
            y = jnp.einsum("nri,rio->no", aggregated.reshape(nodes, relations, -1), weight)
        y = or_nan(or_nan(y, edge_index, nodes), edge_type, relations)
        if self.root is not None:
            y = y + x @ self.root[...]
        return y if self.bias is None else y + self.bias[...]


def glorot(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """PyG's initialiser: uniform with the last two sizes as fans."""
    return init.uniform(math.sqrt(6 / (shape[-2] + shape[-1])))(key, shape)


def _pooled(
    segment: Callable[..., Array], x: Array, batch: Array | None, size: int | None
) -> Float[Array, "g f"]:
    if batch is None:
        batch = jnp.zeros(x.shape[0], jnp.int32)
        size = 1 if size is None else size
    if size is None:
        if isinstance(batch, jax.core.Tracer):
            raise UsageError("under jit a pool needs size, the number of graphs")
        size = int(batch.max()) + 1 if batch.size else 0
    check_ids(batch, size, "graph id")
    return or_nan(segment(x, batch, size), batch, size)
