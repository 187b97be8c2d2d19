"""Forecasting the next values of a series from a window of it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


def make(season: int = 12) -> Task:
    """Squared error of x (B, T, 1) -> target (B, H), scored by the mean absolute error in the data's unit.

    The same windows are forecast by the last value, by the value a season earlier (seasonal naive), and by
    that value plus the last season's growth (drift); `mae_last`, `mae_seasonal`, `mae_drift` are their errors.
    """

    def loss(model: Any, batch: Batch) -> Array:
        return ((model(batch["x"]) - batch["target"]) ** 2).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        x, target, weight = batch["x"], batch["target"], valid_weights(batch, batch["x"].dtype)
        forecasts = {"mae": model(x), **baselines(x[..., 0], target.shape[1], season)}
        scale = batch["scale"]
        sums = {k: (jnp.abs(v - target).mean(-1) * scale * weight).sum() for k, v in forecasts.items()}
        error = ((forecasts["mae"] - target) ** 2).mean(-1)
        return {**sums, "loss": (error * weight).sum(), "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v / sums["count"] for k, v in sums.items() if k != "count"}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("mae", higher_is_better=False),
    )


def baselines(window: Float[Array, "b t"], horizon: int, season: int) -> dict[str, Float[Array, "b h"]]:
    """What needs no learning: forecasts (B, horizon) of windows at least two seasons long."""
    last = jnp.repeat(window[:, -1:], horizon, 1)
    repeats = -(-horizon // season)
    seasonal = jnp.tile(window[:, -season:], (1, repeats))[:, :horizon]
    growth = window[:, -season:].mean(1) - window[:, -2 * season : -season].mean(1)
    years = (jnp.arange(horizon) // season + 1).astype(window.dtype)
    return {
        "mae_last": last,
        "mae_seasonal": seasonal,
        "mae_drift": seasonal + growth[:, None] * years,
    }
