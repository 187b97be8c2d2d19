"""A model that gives hidden states (B, T, H), averaged over valid steps, with a linear head."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.train.tasks import Batch, Task, classification, inputs_of


class PooledClassifier(nn.Module):
    """A backbone (B, T, F), lengths -> (B, T, H), the mean over valid steps, and a linear head -> (B, classes)."""

    def __init__(self, backbone: nnx.Module, width: int, classes: int, *, rngs: nnx.Rngs):
        self.backbone: Any = backbone
        self.head = nn.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b t f"], lengths: Int[Array, " b"]) -> Float[Array, "b c"]:
        hidden = self.backbone(x, lengths)
        valid = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        total = jnp.where(valid, hidden, 0).sum(1)
        return self.head(total / lengths[:, None].astype(total.dtype))


def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """The model with a head on the mean of its hidden states."""
    hidden = nnx.eval_shape(lambda m: m(**inputs_of(sample)), model)
    return PooledClassifier(model, hidden.shape[-1], classes, rngs=rngs)


def make(label_smoothing: float = 0.0) -> Task:
    """`classification` by the mean of the hidden states."""
    return dataclasses.replace(classification.make(label_smoothing), wrap=wrap)
