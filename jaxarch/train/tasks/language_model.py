"""A causal language model that gives its own loss."""

import math
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array

from jaxarch.errors import UsageError
from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import IGNORE_INDEX, Batch, Score, Task, Update, valid_labels


def make(label_smoothing: float = 0.0) -> Task:
    """The model's loss on `labels`, scored by perplexity. A model smooths its own labels: its config says how.

    Raises:
        UsageError: when a model is wrapped whose config says another `label_smoothing`.
    """

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        of_model = getattr(getattr(model, "config", None), "label_smoothing", 0.0)
        if label_smoothing not in (0.0, of_model):
            raise UsageError(
                f"train.label_smoothing {label_smoothing} has no effect on a model that gives its own loss:"
                f" set model.label_smoothing, which is {of_model}"
            )
        return model

    def loss(model: Any, batch: Batch) -> Array:
        return model(**batch)["loss"]

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=perplexity,
        score=Score("perplexity", higher_is_better=False),
        wrap=wrap,
    )


def tally(model: Any, batch: Batch) -> dict[str, Array]:
    """Sums of the loss over the predicted tokens and their number."""
    logits, labels = model(batch["input_ids"])["logits"], valid_labels(batch, "labels")
    total = (labels[:, 1:] != IGNORE_INDEX).sum().astype(logits.dtype)
    return {"loss": cross_entropy(logits[:, :-1], labels[:, 1:]) * total, "count": total}


def perplexity(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Mean loss of a token and its exponential."""
    loss = sums["loss"] / sums["count"]
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
