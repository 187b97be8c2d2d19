"""Weighted sums over the edges of a graph, on one CPU block by block so that the messages stay in its cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.nn.kernels.segments import rows, segment_sum
from jaxarch.nn.kernels.switches import is_enabled

BLOCK = 8192  # edges


def weighted_sum(
    weights: Float[Array, "e h"],
    data: Float[Array, "n h f"],
    edge_index: Int[Array, "2 e"],
    *,
    indices_are_sorted: bool = False,
) -> Float[Array, "n h f"]:
    """For each node the sum over the edges into it of the edge's weights times the row of its source."""
    data = data.astype(weights.dtype)
    # A CPU spends more time on touching new memory than on sums; several devices would have to combine
    # their sums after every block.
    single_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if is_enabled("edge_sums") and single_cpu and weights.shape[0] > BLOCK:
        return blockwise(indices_are_sorted, weights, data, edge_index)
    messages = weights[..., None] * rows(data, edge_index[0])
    return segment_sum(messages, edge_index[1], data.shape[0], indices_are_sorted=indices_are_sorted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise(
    indices_are_sorted: bool,
    weights: Float[Array, "e h"],
    data: Float[Array, "n h f"],
    edge_index: Int[Array, "2 e"],
) -> Float[Array, "n h f"]:
    """`weighted_sum` over BLOCK edges at a time; neither messages nor their gradients leave the cache.

    Refuses forward differentiation (jax.jvp), as every hand-written gradient does.
    """

    def add(y: Array, block: tuple[Array, tuple[Array, Array]]) -> tuple[Array, None]:
        weight, (source, target) = block
        y = y.at[target].add(weight[..., None] * rows(data, source), indices_are_sorted=indices_are_sorted)
        return y, None

    return jax.lax.scan(add, jnp.zeros_like(data), _blocks(weights, edge_index, data.shape[0]))[0]


def _blockwise_forward(
    indices_are_sorted: bool, weights: Array, data: Array, edge_index: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return blockwise(indices_are_sorted, weights, data, edge_index), (weights, data, edge_index)


def _blockwise_backward(
    indices_are_sorted: bool, residuals: tuple[Array, Array, Array], d_y: Array
) -> tuple[Array, Array, Any]:
    weights, data, edge_index = residuals

    def add(d_data: Array, block: tuple[Array, tuple[Array, Array]]) -> tuple[Array, Array]:
        weight, (source, target) = block
        d = rows(d_y, target)
        return d_data.at[source].add(weight[..., None] * d), (d * rows(data, source)).sum(-1)

    d_data, d_weights = jax.lax.scan(add, jnp.zeros_like(data), _blocks(weights, edge_index, data.shape[0]))
    return d_weights.reshape(-1, weights.shape[1])[: len(weights)], d_data, None


blockwise.defvjp(_blockwise_forward, _blockwise_backward)


def _blocks(weights: Array, edge_index: Array, nodes: int) -> tuple[Array, tuple[Array, Array]]:
    """Blocks of edges; the last one is padded with edges of weight 0 to a node that does not exist."""
    padding = -len(weights) % BLOCK
    weights = jnp.pad(weights, ((0, padding), (0, 0)))
    source = jnp.pad(edge_index[0], (0, padding))
    target = jnp.pad(edge_index[1], (0, padding), constant_values=nodes)
    ends = source.reshape(-1, BLOCK), target.reshape(-1, BLOCK)
    return weights.reshape(-1, BLOCK, weights.shape[1]), ends
