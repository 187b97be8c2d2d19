"""A model that gives logits (B, classes), or (B, ..., classes) with labels of the same shape, alone or named."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import IGNORE_INDEX, Batch, Score, Task, Update, inputs_of, valid_labels


def make(label_smoothing: float = 0.0) -> Task:
    """Cross-entropy on the labels (-100 is ignored), scored by accuracy."""

    def loss(model: Any, batch: Batch) -> Array:
        return cross_entropy(logits_of(model, batch), batch["label"], label_smoothing=label_smoothing)

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=accuracy,
        score=Score("accuracy", higher_is_better=True),
    )


def logits_of(model: Any, batch: Batch) -> Array:
    """The model's output, or its "logits" where it is a mapping, as for Hugging Face models."""
    outputs = model(**inputs_of(batch))
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs


def tally(model: Any, batch: Batch) -> dict[str, Array]:
    """Sums of the loss, the correct predictions and the labels that count."""
    logits, label = logits_of(model, batch), valid_labels(batch)
    total = (label != IGNORE_INDEX).sum().astype(logits.dtype)
    correct = (logits.argmax(-1) == label).sum().astype(logits.dtype)
    return {"loss": cross_entropy(logits, label) * total, "correct": correct, "count": total}


def accuracy(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Mean loss and accuracy."""
    return {"loss": sums["loss"] / sums["count"], "accuracy": sums["correct"] / sums["count"]}
