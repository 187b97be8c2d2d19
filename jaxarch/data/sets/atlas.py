"""Small graphs: those of An Atlas of Graphs (Read and Wilson 1998), which networkx ships."""

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.errors import require

NODES = 7


def load(*, copies: int = 4) -> ArraySource:
    """The 1,252 graphs of 1 to 7 nodes as "adjacency" (B, 7, 7), nodes numbered at random, and "real" (B, 7).

    A fifth of the graphs is for testing; the others come numbered in `copies` ways.

    Raises:
        UsageError: networkx is not installed.
    """
    networkx = require("networkx", "recipes", "data atlas")
    matrices = [networkx.to_numpy_array(g, dtype=np.float32) for g in networkx.graph_atlas_g() if len(g)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(matrices))
    parts = []
    for chosen, times in ((order[len(order) // 5 :], copies), (order[: len(order) // 5], 1)):
        rows = [i for i in chosen for _ in range(times)]
        adjacency = np.zeros((len(rows), NODES, NODES), np.float32)
        for row, i in zip(adjacency, rows, strict=True):
            numbers = rng.permutation(len(matrices[i]))
            row[: len(numbers), : len(numbers)] = matrices[i][np.ix_(numbers, numbers)]
        real = np.array([np.arange(NODES) < len(matrices[i]) for i in rows])
        parts.append({"adjacency": adjacency, "real": real})
    return ArraySource(train=parts[0], test=parts[1], classes=1, unit="graphs")
