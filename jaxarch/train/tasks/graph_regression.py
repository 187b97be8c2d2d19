"""A number for each of many small graphs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxarch.data.graph_batches import flatten
from jaxarch.train.tasks import Batch, Task, Update


def make(extensive: bool = False, scale: float = 1.0) -> Task:
    """Squared error on the float `target` of each graph, scored by its root over the test set.

    Args:
        extensive: the target is a sum over nodes: the model's output, which is their mean, counts as often as
            the graph has nodes.
        scale: the unit of the model's output, about the target's deviation.
    """

    def predicted(model: Any, batch: Batch) -> Array:
        graphs = {k: v for k, v in batch.items() if k != "target"}
        y = model(**flatten(graphs))[::2, 0] * scale
        return y * batch["n_node"][:, 0].astype(y.dtype) if extensive else y

    def loss(model: nnx.Module, batch: Batch) -> Array:
        return jnp.square((predicted(model, batch) - batch["target"]) / scale).mean()

    def tally(model: nnx.Module, batch: Batch) -> dict[str, Array]:
        counts = batch["label"] != -100
        apart = jnp.where(counts, predicted(model, batch) - batch["target"], 0)
        total = counts.sum().astype(apart.dtype)
        return {"squares": (apart**2).sum(), "absolute": jnp.abs(apart).sum(), "count": total}

    return Task(updates={"model": Update(loss=loss)}, tally=tally, summary=errors, score=("rmse", False))


def errors(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Root mean squared and mean absolute error, in the target's unit."""
    return {"rmse": (sums["squares"] / sums["count"]) ** 0.5, "mae": sums["absolute"] / sums["count"]}
