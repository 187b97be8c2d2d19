"""A model of several heads that weighs their losses itself."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxarch.train.tasks import Batch, Task, Update

TARGET = "target_"


def make() -> Task:
    """`compute_multi_task_loss` of the targets `target_HEAD`, scored by the mean over the heads.

    A head of classes and one of labels are counted by their accuracy, one of numbers by R squared. `label`
    (B,) is no target: -100 in it takes a row out of the evaluation.
    """

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        inputs, targets = parts_of(batch)
        total, losses = model.compute_multi_task_loss(model(**inputs), targets)
        return total, {f"loss_{k}": v for k, v in losses.items()}

    return Task(updates={"model": Update(loss=loss)}, tally=tally, summary=summary, score=("mean", True))


def parts_of(batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """The model's inputs, and the targets by head."""
    targets = {k.removeprefix(TARGET): v for k, v in batch.items() if k.startswith(TARGET)}
    return {k: v for k, v in batch.items() if not k.startswith(TARGET) and k != "label"}, targets


def tally(model: Any, batch: Batch) -> dict[str, Array]:
    """By head, rows of [right, number] or of the moments of the target and the squared error."""
    inputs, targets = parts_of(batch)
    outputs, valid = model(**inputs), batch["label"] != -100
    sums = {}
    for head, kind in zip(model.tasks, model.loss_types, strict=True):
        found, wanted = outputs[head], targets[head]
        weight = valid.astype(found.dtype)
        if kind == "cross_entropy":
            right = found.argmax(-1) == wanted
            sums[head] = jnp.stack((jnp.where(right, weight, 0).sum(), weight.sum()))
            continue
        wanted = wanted.reshape(found.shape)
        if kind == "binary_cross_entropy":
            right = ((found > 0) == (wanted > 0.5)).astype(found.dtype).mean(-1)
            sums[head] = jnp.stack(((right * weight).sum(), weight.sum()))
        else:
            columns = (wanted * 0 + 1, wanted, wanted**2, (found - wanted) ** 2)
            sums[head] = jnp.stack([(c.mean(-1) * weight).sum() for c in columns])
    return sums


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy or R squared of each head, and their mean."""
    told = {}
    for head, row in sums.items():
        if len(row) == 2:
            told[f"accuracy_{head}"] = row[0] / row[1]
        else:
            count, total, squares, errors = row
            told[f"r2_{head}"] = 1 - errors / (squares - total**2 / count)
    return {**told, "mean": float(np.mean(list(told.values())))}
