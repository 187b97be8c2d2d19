"""scikit-learn's digits as a graph of images that look alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxarch import graphs
from jaxarch.data.array_source import ArraySource
from jaxarch.data.graph_batches import check_width, labelled, one_graph
from jaxarch.errors import require


def load(
    *,
    arguments: Mapping[str, Any],
    neighbours: int = 10,
    per_class: int = 9,
    split: int = 0,
    pooled: bool = False,
) -> ArraySource:
    """1,797 digits of 64 pixels, each joined with its nearest `neighbours` both ways.

    Args:
        neighbours: by Euclidean distance.
        per_class: how many digits of each class have a label in training (9 of about 180 are 5 %).
        split: which ones, drawn from this number.
        pooled: for models that pool, each node is its own graph.

    Raises:
        UsageError: scikit-learn is not installed.
        DataError: per_class leaves nothing for testing, or the model is of another width.
    """
    require("sklearn", "recipes", "data digits_graph")
    from sklearn.datasets import load_digits
    from sklearn.neighbors import NearestNeighbors

    check_width(arguments, num_features=64, num_classes=10)
    images, label = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    _, near = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors()
    pairs = {(min(i, j), max(i, j)) for i, row in enumerate(near.tolist()) for j in row}
    graph = graphs.sort_edges(graphs.from_edges(sorted(pairs), undirected=True, num_nodes=len(x)))
    inputs = {"x": x, "edge_index": np.stack([graph.senders, graph.receivers])}
    if pooled:
        inputs["n_node"] = np.ones(len(x), np.int32)
    return one_graph(inputs, label, labelled(label, per_class, split), 10)
