"""The nodes of one whole graph. Kipf and Welling 2017, arXiv:1609.02907."""

from typing import Any

from jaxtyping import Array

from jaxarch.errors import UsageError
from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import Batch, Score, Task, Update, classification, inputs_of


def make(label_smoothing: float = 0.0) -> Task:
    """Cross-entropy on the labelled nodes (-100 is none), scored by the accuracy on the test nodes.

    A batch is one graph with a leading axis of 1, so that batch_size is 1.

    Raises:
        UsageError: when run, on a batch of more than one graph.
    """

    def loss(model: Any, batch: Batch) -> Array:
        graph = only(batch)
        return cross_entropy(model(**inputs_of(graph)), graph["label"], label_smoothing=label_smoothing)

    return Task(
        updates={"model": Update(loss=loss)},
        tally=lambda model, batch: classification.tally(model, only(batch)),
        summary=classification.accuracy,
        score=Score("accuracy", higher_is_better=True),
    )


def only(batch: Batch) -> dict[str, Array]:
    """The one graph of the batch.

    Raises:
        UsageError: there are more.
    """
    if len(batch["label"]) != 1:
        raise UsageError(
            f"a whole graph is one example: train.batch_size must be 1, not {len(batch['label'])}"
        )
    return {k: v[0] for k, v in batch.items()}
