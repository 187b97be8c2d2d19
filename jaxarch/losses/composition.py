"""Losses that combine others: distillation, and several tasks at once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxarch.errors import UsageError
from jaxarch.losses.classification import cross_entropy
from jaxarch.losses.numerics import finite, reduce, upcast
from jaxarch.losses.regression import kl_div


def distillation_loss(
    student_logits: Float[Array, "*b c"],
    teacher_logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"],
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
) -> Float[Array, ""]:
    """alpha T^2 KL(teacher | student) at temperature T + (1 - alpha) cross-entropy (Hinton et al. 2015).

    Means over the labels that are not ignored. The teacher gets no gradient.
    """
    student = jax.nn.log_softmax(finite(upcast(student_logits)) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(finite(upcast(teacher_logits))) / temperature)
    valid = labels != ignore_index
    divergence = kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    soft = reduce(jnp.where(valid, divergence, 0), "mean", valid.sum()) * temperature**2
    hard = cross_entropy(student_logits, labels, ignore_index=ignore_index)
    return alpha * soft + (1 - alpha) * hard


def multi_task_loss(
    losses: Mapping[str, Num[Array, ""]], weights: Mapping[str, float] | None = None
) -> Float[Array, ""]:
    """The sum of named losses, each times its weight; all 1 if None.

    Raises:
        UsageError: there are no losses, or the names of losses and weights differ.
    """
    _same_names(losses, losses if weights is None else weights)
    return jnp.stack([upcast(x) * (1.0 if weights is None else weights[k]) for k, x in losses.items()]).sum()


def uncertainty_loss(
    losses: Mapping[str, Num[Array, ""]], log_variances: Mapping[str, Float[Array, ""]]
) -> Float[Array, ""]:
    """The sum of (exp(-s) loss + s) / 2 with a learned s = log variance for each task (Kendall et al. 2018).

    Raises:
        UsageError: there are no losses, or the names of losses and variances differ.
    """
    _same_names(losses, log_variances)
    parts = [
        (jnp.exp(-upcast(log_variances[k])) * upcast(x) + upcast(log_variances[k])) / 2
        for k, x in losses.items()
    ]
    return jnp.stack(parts).sum()


def _same_names(losses: Mapping[str, Array], others: Mapping[str, object]) -> None:
    if not losses:
        raise UsageError("there are no losses to add")
    if differ := sorted(set(losses) ^ set(others)):
        raise UsageError(f"the names of losses and weights differ: {', '.join(differ)}")
