"""Small graphs: those of An Atlas of Graphs (Read and Wilson 1998), which networkx ships."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data import Source
from jaxarch.errors import DataError

NODES = 7


def load(*, out: Path, arguments: Mapping[str, Any], seed: int, copies: int = 4) -> Source:
    """The 1,252 graphs of 1 to 7 nodes as "adjacency" (B, 7, 7), nodes numbered at random, and "real" (B, 7).

    A fifth of the graphs is for testing; the others come numbered in `copies` ways.

    Raises:
        DataError: networkx is missing.
    """
    try:
        from networkx import graph_atlas_g, to_numpy_array
    except ModuleNotFoundError:
        raise DataError("the atlas comes with networkx: pip install networkx") from None
    found = [to_numpy_array(g, dtype=np.float32) for g in graph_atlas_g() if len(g)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(found))
    parts = []
    for chosen, times in ((order[len(order) // 5 :], copies), (order[: len(order) // 5], 1)):
        rows = [i for i in chosen for _ in range(times)]
        adjacency = np.zeros((len(rows), NODES, NODES), np.float32)
        for row, i in zip(adjacency, rows, strict=True):
            places = rng.permutation(len(found[i]))
            row[: len(places), : len(places)] = found[i][np.ix_(places, places)]
        real = np.array([np.arange(NODES) < len(found[i]) for i in rows])
        label = np.zeros(len(rows), np.int32)  # what marks the rows that fill up the last batch
        parts.append({"adjacency": adjacency, "real": real, "label": label})
    return Source(train=parts[0], test=parts[1], classes=1, unit="graphs")
