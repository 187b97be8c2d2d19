"""Following a path from its start at given times, each row's its own."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


def make() -> Task:
    """Squared error of x (B, D), times (B, T) -> target (B, T, D), scored by it.

    `mse_still` is the error of staying at the start.
    """

    def predict(model: Any, batch: Batch) -> Float[Array, "b t d"]:
        return jax.vmap(lambda x, times: model(x[None], times)[0])(batch["x"], batch["times"])

    def loss(model: Any, batch: Batch) -> Array:
        return ((predict(model, batch) - batch["target"]) ** 2).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        target, weight = batch["target"], valid_weights(batch, batch["x"].dtype)
        paths = {"mse": predict(model, batch), "mse_still": batch["x"][:, None]}
        sums = {k: (((v - target) ** 2).mean((1, 2)) * weight).sum() for k, v in paths.items()}
        return {**sums, "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("mse", "mse_still")}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("mse", higher_is_better=False),
    )
