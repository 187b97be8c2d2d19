"""`jaxarch bench gcn`: the GNN's training step on 100,000 nodes and a million edges, with PyG's too if installed.

`python -m jaxarch.bench.gcn WAY [gat]` times one way in a process of its own, undisturbed by the others' threads,
and prints a step's time and the process's peak memory.
"""

import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxarch import catalog
from jaxarch.bench import OURS, Contest, jax_step, torch_step
from jaxarch.convert import load_state_dict
from jaxarch.errors import UsageError, unknown

if TYPE_CHECKING:
    import torch

NODES, EDGES, FEATURES = 100_000, 1_000_000, 64
SIZES: Mapping[str, dict[str, Any]] = {
    "gnn": {"num_features": FEATURES, "hidden_dim": 64, "num_classes": 16, "dropout": 0.0},
    "gat": {
        "num_features": FEATURES,
        "hidden_dim": 8,
        "num_classes": 16,
        "heads": 8,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
PYG = "pyg"


def contests(*, compiled: bool, name: str = "gnn") -> Iterator[Contest]:
    """One training step of the model here, in torchref, and with PyG's own convolutions."""
    label = "gcn" if name == "gnn" else name
    yield Contest(label, {way: step(way, name) for way in ways(compiled=compiled)})


def ways(*, compiled: bool) -> list[str]:
    """The ways that can be timed here; torch.compile only of PyG's convolutions, which it supports."""
    available = [OURS, "torch"]
    if importlib.util.find_spec("torch_geometric"):
        available += [PYG, *([f"{PYG} compiled"] if compiled else [])]
    return available


def step(way: str, name: str, nodes: int = NODES, edges: int = EDGES) -> Callable[[], float]:
    """A training step on one random graph whose edges are sorted by target, from the same weights each way.

    Raises:
        UsageError: unknown way, or PyG is not installed.
    """
    import torch

    known = [OURS, "torch", "torch compiled", PYG, f"{PYG} compiled"]
    if way not in known:
        raise unknown("way", way, known)
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, nodes, edges), np.sort(rng.integers(0, nodes, edges))])
    x = rng.normal(size=(nodes, FEATURES)).astype(np.float32)
    torch.manual_seed(0)
    theirs = catalog.create_model(name, "tiny", package="torchref", **SIZES[name])
    if way == OURS:
        ours = catalog.create_model(name, "tiny", **SIZES[name])
        load_state_dict(ours, theirs.state_dict())
        return jax_step(ours, {"x": jnp.asarray(x), "edge_index": jnp.asarray(index, jnp.int32)})
    if way.startswith(PYG):
        use_pyg_layers(theirs, name)
    inputs = {"x": torch.tensor(x), "edge_index": torch.tensor(index)}
    return torch_step(theirs, inputs, compiled=way.endswith("compiled"))


def use_pyg_layers(model: "torch.nn.Module", name: str) -> None:
    """Replace torchref's convolutions by PyG's, with the same weights.

    Raises:
        UsageError: PyG is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its import uses deprecated parts of torch
            from torch_geometric import nn as pyg
    except ModuleNotFoundError:
        raise UsageError("this way needs PyTorch Geometric: pip install torch_geometric") from None
    size = SIZES[name]
    width, hidden = size["num_features"], size["hidden_dim"]
    if name == "gnn":
        layers = {"conv1": pyg.GCNConv(width, hidden), "conv2": pyg.GCNConv(hidden, hidden)}
    else:
        heads = size["heads"]
        layers = {
            "conv1": pyg.GATConv(width, hidden, heads),
            "conv2": pyg.GATConv(hidden * heads, size["num_classes"]),
        }
    for key, layer in layers.items():
        layer.load_state_dict(getattr(model, key).state_dict())
        setattr(model, key, layer)


def alone(way: str, name: str, repeat: int = 6, **sizes: int) -> tuple[float, float]:
    """Median seconds of a step, and the process's peak memory in GB beyond its imports."""
    import resource

    import torch  # noqa: F401  (an import's memory does not count)

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    if way.startswith(PYG):
        import torch_geometric  # noqa: F401
    start_peak, run = peak(), step(way, name, **sizes)
    run()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (peak() - start_peak) / 2**20


if __name__ == "__main__":
    seconds, memory = alone(sys.argv[1], "gat" if "gat" in sys.argv[2:] else "gnn")
    print(f"{seconds:.3f} s, {memory:.2f} GB")
