"""A classifier that learns from a larger one. Hinton et al. 2015, arXiv:1503.02531."""

from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from jaxarch import state
from jaxarch.errors import UsageError
from jaxarch.losses import distillation_loss
from jaxarch.train import checkpoint
from jaxarch.train.tasks import Batch, Score, Task, Update, classification, inputs_of


def make(teacher: str = "", temperature: float = 4.0, alpha: float = 0.9) -> Task:
    """`alpha` times the divergence from the teacher at `temperature`, and 1 - `alpha` of the labels' cross-entropy.

    `teacher` is the folder of a finished run, whose model is in eval mode and is given the same inputs.

    Raises:
        UsageError: no teacher.
        CheckpointError: its checkpoint is missing or damaged.
    """
    if not teacher:
        raise UsageError("distillation needs a trained model: --set train.task_options.teacher=DIR")
    teacher_model = checkpoint.load(Path(teacher)).model()
    teacher_model.eval()
    graph, params, rest = state.split(teacher_model)

    def loss(model: Any, batch: Batch) -> Array:
        inputs = inputs_of(batch)
        merged: Any = state.merge(graph, params, rest)
        soft = jax.lax.stop_gradient(merged(**inputs))
        return distillation_loss(model(**inputs), soft, batch["label"], temperature=temperature, alpha=alpha)

    return Task(
        updates={"model": Update(loss=loss)},
        tally=classification.tally,
        summary=classification.accuracy,
        score=Score("accuracy", higher_is_better=True),
    )
