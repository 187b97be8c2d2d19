"""A causal language model that gives its own loss."""

import math
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array

from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import Batch, Task, Update


def make(label_smoothing: float = 0.0) -> Task:
    """The model's loss on `labels`, scored by perplexity. A model smooths its own labels: its config says how."""

    def loss(model: nnx.Module, batch: Batch) -> Array:
        return model(**batch)["loss"]

    return Task(
        updates={"model": Update(loss=loss)}, tally=count, summary=perplexity, score=("perplexity", False)
    )


def count(model: nnx.Module, batch: Batch) -> dict[str, Array]:
    """Sums of the loss over the predicted tokens and their number."""
    logits, labels = model(batch["input_ids"])["logits"], batch["labels"]
    total = (labels[:, 1:] != -100).sum().astype(logits.dtype)
    return {"loss": cross_entropy(logits[:, :-1], labels[:, 1:]) * total, "count": total}


def perplexity(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Mean loss of a token and its exponential."""
    loss = sums["loss"] / sums["count"]
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
