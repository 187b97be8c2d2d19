"""A classifier that learns from a larger one. Hinton et al. 2015, arXiv:1503.02531."""

from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array

from jaxarch import state
from jaxarch.errors import UsageError
from jaxarch.losses import distillation_loss
from jaxarch.train import checkpoint
from jaxarch.train.tasks import Batch, Task, Update, classification, inputs_of


def make(teacher: str = "", temperature: float = 4.0, alpha: float = 0.9) -> Task:
    """`alpha` times the divergence from the teacher at `temperature`, the rest cross-entropy on the labels.

    `teacher` is the folder of a finished run, whose model is kept in eval mode and sees the same inputs.

    Raises:
        UsageError: no teacher.
        CheckpointError: its checkpoint is missing or damaged.
    """
    if not teacher:
        raise UsageError("distillation needs a trained model: --set train.task_options.teacher=DIR")
    large = checkpoint.load(Path(teacher)).model()
    large.eval()
    graph, params, rest = state.split(large)

    def loss(model: nnx.Module, batch: Batch) -> Array:
        inputs = inputs_of(batch)
        soft = jax.lax.stop_gradient(state.merge(graph, params, rest)(**inputs))
        return distillation_loss(model(**inputs), soft, batch["label"], temperature=temperature, alpha=alpha)

    return Task(
        updates={"model": Update(loss=loss)},
        tally=classification.count,
        summary=classification.accuracy,
        score=("accuracy", True),
    )
