"""A number for each of many small graphs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.data.graph_batches import disjoint_union
from jaxarch.train.tasks import Batch, Score, Task, Update, inputs_of, valid_rows


def make(extensive: bool = False, scale: float = 1.0) -> Task:
    """Squared error on the float `target` of each graph, scored by its root over the test set.

    Args:
        extensive: the target is a sum over nodes: the model's output, which is their mean, counts as often as
            the graph has nodes.
        scale: the unit of the model's output, about the target's deviation.
    """

    def predict(model: Any, batch: Batch) -> Float[Array, " b"]:
        graphs = {k: v for k, v in inputs_of(batch).items() if k != "target"}
        y = model(**disjoint_union(graphs))[::2, 0] * scale
        return y * batch["n_node"][:, 0].astype(y.dtype) if extensive else y

    def loss(model: Any, batch: Batch) -> Array:
        return jnp.square((predict(model, batch) - batch["target"]) / scale).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        valid = valid_rows(batch)
        error = jnp.where(valid, predict(model, batch) - batch["target"], 0)
        total = valid.sum().astype(error.dtype)
        return {"squares": (error**2).sum(), "absolute": jnp.abs(error).sum(), "count": total}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=errors,
        score=Score("rmse", higher_is_better=False),
    )


def errors(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Root mean squared and mean absolute error, in the target's unit."""
    return {"rmse": (sums["squares"] / sums["count"]) ** 0.5, "mae": sums["absolute"] / sums["count"]}
