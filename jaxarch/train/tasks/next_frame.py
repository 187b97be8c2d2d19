"""Predicting each next frame of a video from those before it. Shi et al. 2015, arXiv:1506.04214."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


class FramePredictor(nn.Module):
    """A backbone (B, T, H, W, C) -> (B, T, H, W, D), state, and a 1x1 convolution -> logits (B, T, H, W, C)."""

    def __init__(self, backbone: nnx.Module, width: int, channels: int, *, rngs: nnx.Rngs):
        self.backbone: Any = backbone
        self.head = nn.Conv2d(width, channels, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        hidden, _ = self.backbone(x)
        return self.head(hidden.reshape(-1, *hidden.shape[2:])).reshape(x.shape)


def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The model with a head that gives an image."""
    hidden, _ = nnx.eval_shape(lambda m: m(jnp.asarray(sample["x"], jnp.result_type(float))), model)
    return FramePredictor(model, hidden.shape[-1], sample["x"].shape[-1], rngs=rngs)


def make() -> Task:
    """Cross-entropy of every pixel of x (B, T, H, W, C) in [0, 1], of frames 2 to T; scored by the squared error.

    `mse_copy` is the error of taking the last frame for the next one.
    """

    def loss(model: Any, batch: Batch) -> Array:
        x = batch["x"]
        logits = model(x[:, :-1])
        return (jax.nn.softplus(logits) - logits * x[:, 1:]).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        x, weight = batch["x"], valid_weights(batch, batch["x"].dtype)
        frames = {"mse": jax.nn.sigmoid(model(x[:, :-1])), "mse_copy": x[:, :-1]}
        sums = {k: (((v - x[:, 1:]) ** 2).mean((1, 2, 3, 4)) * weight).sum() for k, v in frames.items()}
        return {**sums, "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("mse", "mse_copy")}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("mse", higher_is_better=False),
        wrap=wrap,
    )
