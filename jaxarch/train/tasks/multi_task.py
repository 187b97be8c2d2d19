"""A model of several heads that weighs their losses itself."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxarch.train.tasks import Batch, Score, Task, Update, inputs_of, valid_weights

TARGET = "target_"


def make() -> Task:
    """`compute_multi_task_loss` of the targets `target_HEAD`, scored by the mean over the heads.

    Heads of classes and of binary labels are measured by their accuracy, heads of numbers by R squared.
    """

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        inputs, targets = inputs_and_targets(batch)
        outputs = model(**inputs)
        total, losses = model.compute_multi_task_loss(outputs, targets), model.task_losses(outputs, targets)
        return total, {f"loss_{k}": v for k, v in losses.items()}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("mean", higher_is_better=True),
    )


def inputs_and_targets(batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """The model's inputs, and the targets by head."""
    targets = {k.removeprefix(TARGET): v for k, v in batch.items() if k.startswith(TARGET)}
    return {k: v for k, v in inputs_of(batch).items() if not k.startswith(TARGET)}, targets


def tally(model: Any, batch: Batch) -> dict[str, Array]:
    """By head, rows of [correct, number] or of the moments of the target and the squared error."""
    inputs, targets = inputs_and_targets(batch)
    outputs = model(**inputs)
    sums = {}
    for head, kind in zip(model.tasks, model.loss_types, strict=True):
        output, target = outputs[head], targets[head]
        weight = valid_weights(batch, output.dtype)
        if kind == "cross_entropy":
            correct = output.argmax(-1) == target
            sums[head] = jnp.stack((jnp.where(correct, weight, 0).sum(), weight.sum()))
            continue
        target = target.reshape(output.shape)
        if kind == "binary_cross_entropy":
            share = ((output > 0) == (target > 0.5)).astype(output.dtype).mean(-1)
            sums[head] = jnp.stack(((share * weight).sum(), weight.sum()))
        else:
            columns = (target * 0 + 1, target, target**2, (output - target) ** 2)
            sums[head] = jnp.stack([(c.mean(-1) * weight).sum() for c in columns])
    return sums


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy or R squared of each head, and their mean."""
    metrics = {}
    for head, row in sums.items():
        if len(row) == 2:
            metrics[f"accuracy_{head}"] = row[0] / row[1]
        else:
            count, total, squares, errors = row
            metrics[f"r2_{head}"] = 1 - errors / (squares - total**2 / count)
    return {**metrics, "mean": float(np.mean(list(metrics.values())))}
