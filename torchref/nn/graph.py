"""Message passing on graphs: segment operations, and PyTorch Geometric's convolutions and pools.

A graph is PyG's: `edge_index` (2, E) holds source above target, messages go from source to target, parallel
edges and self loops count. Indices out of range are an error.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Module, Parameter
from torch.nn import functional as F

from torchref.nn.init import initialized


def segment_sum(data: Tensor, ids: Tensor, num_segments: int, mask: Tensor | None = None) -> Tensor:
    """The sum of the rows of each segment; rows where the mask is False do not count. Empty: 0."""
    if mask is not None:
        data = torch.where(_broadcast(mask, data), data, 0)
    return data.new_zeros(num_segments, *data.shape[1:]).index_add(0, ids, data)


def segment_mean(data: Tensor, ids: Tensor, num_segments: int, mask: Tensor | None = None) -> Tensor:
    """The mean of the rows of each segment; rows where the mask is False do not count. Empty: 0."""
    total = segment_sum(data, ids, num_segments, mask)
    count = segment_sum(data.new_ones(ids.shape), ids, num_segments, mask)
    return total / _broadcast(count.clamp(min=1), total)


def segment_max(data: Tensor, ids: Tensor, num_segments: int, mask: Tensor | None = None) -> Tensor:
    """The maximum of each segment; rows where the mask is False do not count. Empty: 0."""
    if mask is not None:
        data, ids = data[mask], ids[mask]
    filled = segment_sum(data.new_ones(ids.shape), ids, num_segments) > 0
    # From -inf: PyG starts at 0 and at a maximum of 0 gives a part of the gradient to that start.
    maximum = data.new_full((num_segments, *data.shape[1:]), -torch.inf)
    maximum = maximum.scatter_reduce(0, _broadcast(ids, data).expand_as(data), data, "amax")
    return torch.where(_broadcast(filled, maximum), maximum, 0)


def segment_softmax(
    logits: Tensor, ids: Tensor, num_segments: int, mask: Tensor | None = None, own: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The softmax over the rows of each segment, and over one more row of its own if given.

    Rows where the mask is False get 0 and do not count. Returns the weights of the rows and of `own`.
    """
    if mask is not None:
        logits = logits.masked_fill(~_broadcast(mask, logits), -torch.inf)
    fixed = logits.detach()
    maximum = fixed.new_full((num_segments, *fixed.shape[1:]), -torch.inf)
    maximum = maximum.scatter_reduce(0, _broadcast(ids, fixed).expand_as(fixed), fixed, "amax")
    if own is not None:
        maximum = torch.maximum(maximum, own.detach())
    maximum = torch.where(maximum.isfinite(), maximum, 0)
    weights = (logits - maximum[ids]).exp()
    total = segment_sum(weights, ids, num_segments)
    if own is None:
        return weights / torch.where(total > 0, total, 1)[ids], None
    loop = (own - maximum).exp()
    total = total + loop
    return weights / total[ids], loop / total


SEGMENTS = {"add": segment_sum, "sum": segment_sum, "mean": segment_mean, "max": segment_max}


def graph_ids(n_node: Tensor, num_nodes: int) -> Tensor:
    """PyG's `batch`, the graph of each node, from jraph's `n_node`, the nodes of each graph (0 is allowed).

    A ValueError if they do not add up to the nodes.
    """
    if (n_node < 0).any() or n_node.sum() != num_nodes:
        raise ValueError(f"n_node {n_node.tolist()} must add up to the {num_nodes} nodes of x")
    return torch.repeat_interleave(torch.arange(len(n_node), device=n_node.device), n_node)


def graph_inputs(
    x: Any, edge_index: Tensor | None, n_node: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x, edge_index, n_node), or those of one object in the place of x: PyG's Data or Batch.

    A ValueError if it has neither edges nor edge_index.
    """
    if edge_index is not None:
        return x, edge_index, n_node
    if not hasattr(x, "edge_index"):
        raise ValueError("edge_index is missing: give x and edge_index, or a graph that holds both")
    batch = getattr(x, "batch", None)
    return x.x, x.edge_index, n_node if batch is None else torch.bincount(batch)


def global_add_pool(x: Tensor, batch: Tensor | None = None, size: int | None = None) -> Tensor:
    """The sum of the nodes of each graph; `batch` as PyG's, None is one graph. Empty graphs give 0."""
    return _pooled(segment_sum, x, batch, size)


def global_mean_pool(x: Tensor, batch: Tensor | None = None, size: int | None = None) -> Tensor:
    """The mean of the nodes of each graph; as `global_add_pool`."""
    return _pooled(segment_mean, x, batch, size)


def global_max_pool(x: Tensor, batch: Tensor | None = None, size: int | None = None) -> Tensor:
    """The maximum over the nodes of each graph; as `global_add_pool`."""
    return _pooled(segment_max, x, batch, size)


def mean_of_neighbours(x: Tensor, edge_index: Tensor) -> Tensor:
    """The mean of the features of the sources of each node's edges; 0 for a node without."""
    check_ids(edge_index, x.shape[0], "edge index")
    return segment_mean(x[edge_index[0]], edge_index[1], x.shape[0])


def edge_inputs(x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
    """For each edge the features of its target, its source and itself, joined."""
    check_ids(edge_index, x.shape[0], "edge index")
    return torch.cat([x[edge_index[1]], x[edge_index[0]], edge_attr], 1)


def all_pairs(x: Tensor) -> Tensor:
    """For each pair of nodes the features of both, joined."""
    nodes = x.shape[-2]
    first = x.unsqueeze(-2).expand(*x.shape[:-1], nodes, x.shape[-1])
    return torch.cat([first, first.transpose(-3, -2)], -1)


def check_ids(ids: Tensor, size: int, what: str) -> None:
    """An IndexError if an id is outside [0, size): torch's indexing would wrap a negative one."""
    bad = ids[(ids < 0) | (ids >= size)]
    if bad.numel():
        raise IndexError(f"{what} {int(bad[0])} is out of range: it must be in [0, {size})")


class GCNConv(Module):
    """Graph convolution with symmetric normalisation (Kipf and Welling 2017, arXiv:1609.02907).

    x (N, in_channels), edge_index (2, E), edge_weight (E,) or None -> (N, out_channels). PyG's GCNConv:
    every node has one self loop, of weight 1 (2 if `improved`) unless the graph has one (of several
    the last); the inverse root of a degree 0 is 0. add_self_loops without normalize is a ValueError.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        improved: bool = False,
        add_self_loops: bool | None = None,
        normalize: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        if add_self_loops and not normalize:
            raise ValueError("add_self_loops needs normalize: without it GCNConv only sums")
        self.improved, self.normalize = improved, normalize
        self.add_self_loops = normalize if add_self_loops is None else add_self_loops
        self.lin = initialized(Linear(in_channels, out_channels, False), "xavier")
        self.bias = Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        check_ids(edge_index, x.shape[0], "edge index")
        nodes, (source, target) = x.shape[0], edge_index
        weight = x.new_ones(target.shape) if edge_weight is None else edge_weight
        loop = x.new_zeros(nodes)
        if self.add_self_loops:
            is_loop = source == target
            order = torch.where(is_loop, torch.arange(len(target), device=x.device), -1)
            last = order.new_full((nodes,), -1).scatter_reduce(0, target, order, "amax")
            loop = x.new_full((nodes,), 2.0 if self.improved else 1.0)
            if len(target):
                loop = torch.where(last >= 0, weight[last.clamp(min=0)], loop)
            weight = torch.where(is_loop, 0, weight)
        if self.normalize:
            degree = segment_sum(weight, target, nodes) + loop
            inverse = torch.where(degree == 0, 0, torch.where(degree == 0, 1, degree) ** -0.5)
            weight = inverse[source] * weight * inverse[target]
            loop = inverse * loop * inverse
        h = self.lin(x)
        y = segment_sum(weight[:, None] * h[source], target, nodes)
        if self.add_self_loops:
            y = y + loop[:, None] * h
        return y if self.bias is None else y + self.bias


class GATConv(Module):
    """Graph attention (Velickovic et al. 2018, arXiv:1710.10903).

    x (N, in_channels), edge_index (2, E), edge_attr (E, edge_dim) -> (N, heads * out_channels), or the mean
    over the heads (N, out_channels) without `concat`. PyG's GATConv: self loops in the graph are replaced by
    one per node, whose features are `fill_value` or that aggregation of the features of the edges into it.
    Dropout acts on the attention weights, of the edges and then of the loops.
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
    ):
        super().__init__()
        if isinstance(fill_value, str) and fill_value not in SEGMENTS:
            raise ValueError(f"unknown fill_value {fill_value!r}: known: {', '.join(SEGMENTS)}")
        self.out_channels, self.heads, self.concat = out_channels, heads, concat
        self.negative_slope, self.add_self_loops = negative_slope, add_self_loops
        self.edge_dim, self.fill_value = edge_dim, fill_value
        width, total = heads * out_channels, out_channels * (heads if concat else 1)
        self.lin = initialized(Linear(in_channels, width, False), "xavier")
        self.att_src = Parameter(glorot((1, heads, out_channels)))
        self.att_dst = Parameter(glorot((1, heads, out_channels)))
        if edge_dim is not None:
            self.lin_edge = initialized(Linear(edge_dim, width, False), "xavier")
            self.att_edge = Parameter(glorot((1, heads, out_channels)))
        if residual:
            self.res = initialized(Linear(in_channels, total, False), "xavier")
        self.residual = residual
        self.bias = Parameter(torch.zeros(total)) if bias else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        if (edge_attr is None) != (self.edge_dim is None):
            raise ValueError(f"edge_dim is {self.edge_dim}: edge_attr must be given with it and only with it")
        check_ids(edge_index, x.shape[0], "edge index")
        nodes, shape = x.shape[0], (-1, self.heads, self.out_channels)
        source, target = edge_index
        mask, loop_logits = None, None
        h = self.lin(x).reshape(shape)
        source_logits, target_logits = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        logits = source_logits[source] + target_logits[target]
        if self.add_self_loops:
            mask, loop_logits = source != target, source_logits + target_logits
        if edge_attr is not None:
            logits = logits + self._edge_logits(edge_attr)
            if loop_logits is not None and isinstance(self.fill_value, str):
                aggregate = SEGMENTS[self.fill_value]
                loop_attr = aggregate(edge_attr, target, nodes, mask)
                loop_logits = loop_logits + self._edge_logits(loop_attr)
            elif loop_logits is not None and not isinstance(self.fill_value, str):
                loop_attr = x.new_full((1, edge_attr.shape[1]), self.fill_value)
                loop_logits = loop_logits + self._edge_logits(loop_attr)
        weights, loop = segment_softmax(
            F.leaky_relu(logits, self.negative_slope),
            target,
            nodes,
            mask,
            None if loop_logits is None else F.leaky_relu(loop_logits, self.negative_slope),
        )
        y = segment_sum(self.dropout(weights)[..., None] * h[source], target, nodes)
        if loop is not None:
            y = y + self.dropout(loop)[..., None] * h
        y = y.flatten(1) if self.concat else y.mean(1)
        if self.residual:
            y = y + self.res(x)
        return y if self.bias is None else y + self.bias

    def _edge_logits(self, edge_attr: Tensor) -> Tensor:
        h = self.lin_edge(edge_attr).reshape(-1, self.heads, self.out_channels)
        return (h * self.att_edge).sum(-1)


class RGCNConv(Module):
    """Relational graph convolution (Schlichtkrull et al. 2018, arXiv:1703.06103).

    x (N, in_channels), edge_index (2, E), edge_type (E,) in [0, num_relations) -> (N, out_channels): for
    each relation the aggregation ("mean", "add", "max") of the sources times the relation's matrix, and the
    node itself times `root`. The matrices are free, mixed from `num_bases` matrices by `comp`, or of
    `num_blocks` diagonal blocks. PyG's RGCNConv, all relations at once: takes memory N num_relations
    in_channels.
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
    ):
        super().__init__()
        if num_bases is not None and num_blocks is not None:
            raise ValueError("num_bases and num_blocks exclude each other: give one")
        if num_blocks is not None and (in_channels % num_blocks or out_channels % num_blocks):
            raise ValueError(f"num_blocks {num_blocks} must divide {in_channels} and {out_channels} channels")
        if aggr not in SEGMENTS:
            raise ValueError(f"unknown aggr {aggr!r}: known: {', '.join(SEGMENTS)}")
        self.out_channels, self.num_relations = out_channels, num_relations
        self.num_bases, self.num_blocks, self.aggr = num_bases, num_blocks, aggr
        shape: tuple[int, ...] = (
            num_relations if num_bases is None else num_bases,
            in_channels,
            out_channels,
        )
        if num_blocks is not None:
            shape = (num_relations, num_blocks, in_channels // num_blocks, out_channels // num_blocks)
        self.weight = Parameter(glorot(shape))
        if num_bases is not None:
            self.comp = Parameter(glorot((num_relations, num_bases)))
        self.root = Parameter(glorot((in_channels, out_channels))) if root_weight else None
        self.bias = Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> Tensor:
        check_ids(edge_index, x.shape[0], "edge index")
        check_ids(edge_type, self.num_relations, "edge type")
        nodes, relations = x.shape[0], self.num_relations
        source, target = edge_index
        ids = target * relations + edge_type
        aggregated = SEGMENTS[self.aggr](x[source], ids, nodes * relations)
        weight: Tensor = self.weight
        if self.num_bases is not None:
            weight = torch.einsum("rb,bio->rio", self.comp, weight)
        if self.num_blocks is not None:
            blocks = aggregated.reshape(nodes, relations, self.num_blocks, weight.shape[2])
            y = torch.einsum("nrki,rkio->nko", blocks, weight).reshape(nodes, self.out_channels)
        else:
            y = torch.einsum("nri,rio->no", aggregated.reshape(nodes, relations, x.shape[1]), weight)
        if self.root is not None:
            y = y + x @ self.root
        return y if self.bias is None else y + self.bias


def glorot(shape: tuple[int, ...]) -> Tensor:
    """PyG's initialiser: uniform with the last two sizes as fans."""
    bound = (6 / (shape[-2] + shape[-1])) ** 0.5
    return torch.empty(shape).uniform_(-bound, bound)


def _broadcast(per_row: Tensor, data: Tensor) -> Tensor:
    """One value per row, shaped to broadcast over what each row holds."""
    return per_row.reshape(-1, *(1,) * (data.ndim - 1))


def _pooled(segment: Callable[..., Tensor], x: Tensor, batch: Tensor | None, size: int | None) -> Tensor:
    if batch is None:
        batch = torch.zeros(len(x), dtype=torch.long, device=x.device)
        size = 1 if size is None else size
    if size is None:
        size = int(batch.max()) + 1 if batch.numel() else 0
    check_ids(batch, size, "graph id")
    return segment(x, batch, size)
