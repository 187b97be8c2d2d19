"""Optimizers and schedules as optax transformations that take torch.optim's steps.

Parameters are flat dictionaries by path. Weights of two or more dimensions decay, biases and norms do not.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxarch.errors import UsageError, unknown

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adam", "sgd")


def create_schedule(
    kind: str, learning_rate: float, warmup_steps: int, total_steps: int
) -> Callable[[Any], Any]:
    """The learning rate of each step, from 0: torch's LambdaLR with the same factor.

    Linear warm-up to `learning_rate` over `warmup_steps` (step s has the factor (s + 1) / warmup_steps), then
    a cosine or a line down to 0 at `total_steps`, or constant.

    Raises:
        UsageError: unknown kind, or a warm-up that is longer than the training.
    """
    if kind not in SCHEDULES:
        raise unknown("schedule", kind, SCHEDULES)
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"warmup_steps {warmup_steps} must be between 0 and steps {total_steps}")

    def schedule(step):
        step = jnp.asarray(step, jnp.result_type(float))
        warm = (step + 1) / max(warmup_steps, 1)
        done = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0, 1)
        after = {"cosine": 0.5 * (1 + jnp.cos(math.pi * done)), "linear": 1 - done, "constant": jnp.ones(())}
        return learning_rate * jnp.where(step < warmup_steps, warm, after[kind])

    return schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """torch.nn.utils.clip_grad_norm_: scale by max_norm / (norm + 1e-6) where that is below 1."""

    def update(updates, state, params=None):
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decays(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay acts on: those of two or more dimensions."""
    return {path: x.ndim > 1 for path, x in params.items()}


def create_optimizer(
    kind: str = "adamw",
    *,
    learning_rate: float | Callable[[Any], Any],
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Clipping by global norm (0: none), then AdamW, Adam or SGD with torch's defaults.

    Adam and SGD add `weight_decay` times the parameter to the gradient, as torch does; AdamW decouples it.

    Raises:
        UsageError: unknown kind.
    """
    coupled = optax.add_decayed_weights(weight_decay, mask=decays)
    match kind:
        case "adamw":
            rule = optax.adamw(learning_rate, weight_decay=weight_decay, mask=decays)
        case "adam":
            rule = optax.chain(coupled, optax.adam(learning_rate))
        case "sgd":
            rule = optax.chain(coupled, optax.sgd(learning_rate))
        case _:
            raise unknown("optimizer", kind, OPTIMIZERS)
    return _promoting(optax.chain(clip_by_global_norm(max_grad_norm), rule) if max_grad_norm > 0 else rule)


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """optax mixes its int32 counts with floats, which strict dtype promotion would refuse."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)
