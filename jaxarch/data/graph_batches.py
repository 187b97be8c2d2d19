"""Graphs as rows of a recipe's arrays: one whole graph in one row, or many small ones padded to one size."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch
from jaxarch.errors import DataError

if TYPE_CHECKING:
    from jraph import GraphsTuple


def one_graph(
    inputs: Mapping[str, np.ndarray],
    label: Int[np.ndarray, " n"],
    train: Bool[np.ndarray, " n"],
    classes: int,
) -> ArraySource:
    """Nodes of one graph to be classified: every batch is the whole graph, with a leading axis of 1.

    Args:
        inputs: the model's arguments.
        label: (N,) classes of all nodes.
        train: (N,) True at the nodes whose label is known in training; the others are for testing.
    """
    graph = {k: np.asarray(v)[None] for k, v in inputs.items()}
    return ArraySource(
        train={**graph, "label": np.where(train, label, -100).astype(np.int32)[None]},
        test={**graph, "label": np.where(train, -100, label).astype(np.int32)[None]},
        classes=classes,
        items=len(label),
        unit="nodes",
    )


def labelled(label: Int[np.ndarray, " n"], per_class: int, seed: int) -> Bool[np.ndarray, " n"]:
    """(N,) True at `per_class` nodes of each class, drawn from the seed.

    Raises:
        DataError: a class has no more nodes than that, so that none is left for testing.
    """
    rng, chosen = np.random.default_rng(seed), np.zeros(len(label), bool)
    for c in np.unique(label):
        nodes = np.flatnonzero(label == c)
        if len(nodes) <= per_class:
            raise DataError(f"class {c} has {len(nodes)} nodes: label fewer than that, not {per_class}")
        chosen[rng.permutation(nodes)[:per_class]] = True
    return chosen


def stack(graphs: Sequence["GraphsTuple"]) -> Batch:
    """Graphs of one each as arrays with a row per graph, all padded to the largest.

    Every row ends in at least one padding node; padding edges join that one with itself. The features keep
    their names, `n_node` (B, 2) counts the real nodes and the padding, "edge_index" is (B, 2, E).

    Raises:
        DataError: there is no graph.
    """
    if not graphs:
        raise DataError("there is no graph to stack")
    nodes = max(int(g.n_node.sum()) for g in graphs) + 1
    edges = max(len(g.senders) for g in graphs)
    index = np.full((len(graphs), 2, edges), nodes - 1, np.int32)
    for row, g in zip(index, graphs, strict=True):
        row[0, : len(g.senders)], row[1, : len(g.receivers)] = g.senders, g.receivers
    real = np.array([int(g.n_node.sum()) for g in graphs], np.int32)
    batch = {"edge_index": index, "n_node": np.stack([real, nodes - real], 1)}
    for part, size in (("nodes", nodes), ("edges", edges)):
        for name in getattr(graphs[0], part):
            features = [np.asarray(getattr(g, part)[name]) for g in graphs]
            padded = np.zeros((len(graphs), size, *features[0].shape[1:]), features[0].dtype)
            for row, feature in zip(padded, features, strict=True):
                row[: len(feature)] = feature
            batch[name] = padded
    return batch


def disjoint_union(batch: Mapping[str, Array]) -> dict[str, Array]:
    """A stacked batch as one graph of B N nodes, as models take it; of its 2 B graphs the even ones are real."""
    count, nodes = batch["x"].shape[:2]
    offset = nodes * jnp.arange(count, dtype=batch["edge_index"].dtype)
    index = (batch["edge_index"] + offset[:, None, None]).swapaxes(0, 1).reshape(2, -1)
    rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in batch.items() if k != "edge_index"}
    return {**rows, "edge_index": index}


def check_width(arguments: Mapping[str, Any], **widths: int) -> None:
    """The model's arguments must be the data's widths, as far as the model has them.

    Raises:
        DataError: one is not.
    """
    for name, width in widths.items():
        if arguments.get(name, width) != width:
            raise DataError(f"the data needs model.{name}={width}, not {arguments[name]}")
