"""Zachary's karate club. Zachary 1977, doi:10.1086/jar.33.4.3629752."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxarch import graphs
from jaxarch.data.array_source import ArraySource
from jaxarch.data.graph_batches import check_width, one_graph
from jaxarch.errors import require


def load(*, arguments: Mapping[str, Any], pooled: bool = False) -> ArraySource:
    """34 members, who saw whom, and which of two clubs each chose when it split; only the two leaders' are known.

    The features say who a member is and no more. `pooled`: for models that pool, each node is its own graph.

    Raises:
        UsageError: networkx is not installed.
        DataError: the model is of another width.
    """
    networkx = require("networkx", "recipes", "data karate")
    check_width(arguments, num_features=34, num_classes=2)
    club = networkx.karate_club_graph()
    graph = graphs.from_networkx(club)
    label = np.array([side == "Officer" for _, side in club.nodes(data="club")], np.int32)
    known = np.isin(np.arange(34), (0, 33))
    inputs = {"x": np.eye(34, dtype=np.float32), "edge_index": np.stack([graph.senders, graph.receivers])}
    if pooled:
        inputs["n_node"] = np.ones(34, np.int32)
    return one_graph(inputs, label, known, 2)
