"""What is trained: how a batch becomes a loss, and how results are counted."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import unknown
from jaxarch.train.losses import cross_entropy

Batch = Mapping[str, Any]


class Task(NamedTuple):
    """wrap(model, sample, classes, rngs) -> model; loss(model, batch, smoothing) -> scalar;
    tally(model, batch) -> sums over the batch; summary(sums) -> metrics; score: the metric that selects the
    best checkpoint, and whether more of it is better."""

    wrap: Callable[[nnx.Module, Batch, int, nnx.Rngs], nnx.Module]
    loss: Callable[[nnx.Module, Batch, float], Array]
    tally: Callable[[nnx.Module, Batch], dict[str, Array]]
    summary: Callable[[Mapping[str, float]], dict[str, float]]
    score: tuple[str, bool]


class PooledClassifier(nn.Module):
    """A backbone (B, T, F), lengths -> (B, T, H), the mean over valid steps, and a linear head -> (B, classes)."""

    def __init__(self, backbone: nnx.Module, width: int, classes: int, *, rngs: nnx.Rngs):
        self.backbone = backbone
        self.head = nn.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b t f"], lengths: Int[Array, " b"]) -> Float[Array, "b c"]:
        hidden = self.backbone(x, lengths)
        valid = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        total = jnp.where(valid, hidden, 0).sum(1)
        return self.head(total / lengths[:, None].astype(total.dtype))


def inputs_of(batch: Batch) -> dict[str, Array]:
    """The model's arguments: everything but the label."""
    return {k: v for k, v in batch.items() if k != "label"}


def _classify(model: nnx.Module, batch: Batch, smoothing: float) -> Array:
    return cross_entropy(model(**inputs_of(batch)), batch["label"], label_smoothing=smoothing)


def _count_correct(model: nnx.Module, batch: Batch) -> dict[str, Array]:
    logits, label = model(**inputs_of(batch)), batch["label"]
    count = (label != -100).sum().astype(logits.dtype)
    correct = (logits.argmax(-1) == label).sum().astype(logits.dtype)
    return {"loss": cross_entropy(logits, label) * count, "correct": correct, "count": count}


def _accuracy(sums: Mapping[str, float]) -> dict[str, float]:
    return {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}


def _count_tokens(model: nnx.Module, batch: Batch) -> dict[str, Array]:
    logits, labels = model(batch["input_ids"])["logits"], batch["labels"]
    count = (labels[:, 1:] != -100).sum().astype(logits.dtype)
    return {"loss": cross_entropy(logits[:, :-1], labels[:, 1:]) * count, "count": count}


def _perplexity(sums: Mapping[str, float]) -> dict[str, float]:
    loss = sums["loss"] / sums["count"]
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


def _pooled(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    hidden = nnx.eval_shape(lambda m: m(**inputs_of(sample)), model)
    return PooledClassifier(model, hidden.shape[-1], classes, rngs=rngs)


def _as_it_is(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
    return model


def _model_loss(model: nnx.Module, batch: Batch, smoothing: float) -> Array:
    # A language model smooths its own labels: its config says how.
    return model(**batch)["loss"]


TASKS: dict[str, Task] = {
    "classification": Task(_as_it_is, _classify, _count_correct, _accuracy, ("accuracy", True)),
    "sequence_classification": Task(_pooled, _classify, _count_correct, _accuracy, ("accuracy", True)),
    "language_model": Task(_as_it_is, _model_loss, _count_tokens, _perplexity, ("perplexity", False)),
}


def task(name: str) -> Task:
    """The task of a recipe.

    Raises:
        UsageError: unknown name.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
