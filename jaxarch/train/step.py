"""One optimizer step, jitted, with the state donated; and one evaluation step."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxarch import state
from jaxarch.nn.module import wide_dtype
from jaxarch.train.tasks import Task

if TYPE_CHECKING:  # the type checker knows the standard library's decorator, not chex's
    from dataclasses import dataclass
else:
    from chex import dataclass


@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as flat dictionaries by path."""

    step: Any
    params: dict[str, Any]
    rest: dict[str, Any]
    opt_state: Any


def half(tree: Any) -> Any:
    """Floating leaves as bfloat16."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def create_state(build: Callable[[], nnx.Module], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step. Call it under jit with `out_shardings`, and it is born sharded."""
    _, params, rest = state.split(build())
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, rest=rest, opt_state=optimizer.init(params)
    )


def make_train_step(
    graph: nnx.GraphDef,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    label_smoothing: float = 0.0,
    mixed_precision: bool = False,
    accumulate: int = 1,
    placed: Any = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (state, {"loss", "grad_norm"}), both left on the device.

    With `mixed_precision` the model computes in bfloat16; parameters, moments and running statistics stay
    as they are. With `accumulate` = k the batch is taken in k parts, one after another, and their mean
    gradient makes one step: the batch's own gradient where every part weighs the same, as rows do.
    `placed` are the shardings of the state, which the step keeps; the compiler's choice if None. Gradients
    of a batch are those of the whole batch, however it is sharded.
    """

    def part_of(params, rest, batch):
        def loss_of(params):
            model = state.merge(graph, half(params) if mixed_precision else params, rest)
            loss = task.loss(model, half(batch) if mixed_precision else batch, label_smoothing)
            return loss.astype(wide_dtype(loss.dtype)), state.rest_of(model)

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return loss, gradients, rest

    def gradients_of(params, rest, batch):
        if accumulate == 1:
            return part_of(params, rest, batch)
        # Part i holds rows i, i + k, ...: each device gives some of its rows to every part.
        parts = {k: v.reshape(-1, accumulate, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
        first = {k: v[0] for k, v in parts.items()}
        loss, gradients, rest = part_of(params, rest, first)

        def add(carry, part):
            loss, gradients, rest = carry
            more, extra, rest = part_of(params, rest, part)
            return (loss + more, jax.tree.map(jnp.add, gradients, extra), rest), None

        others = {k: v[1:] for k, v in parts.items()}
        (loss, gradients, rest), _ = jax.lax.scan(add, (loss, gradients, rest), others)
        return loss / accumulate, jax.tree.map(lambda g: g / accumulate, gradients), rest

    def step(before: TrainState, batch):
        loss, gradients, rest = gradients_of(before.params, before.rest, batch)
        updates, opt_state = optimizer.update(gradients, before.opt_state, before.params)
        params = optax.apply_updates(before.params, updates)
        after = TrainState(step=before.step + 1, params=params, rest=rest, opt_state=opt_state)
        return after, {"loss": loss, "grad_norm": optax.tree.norm(gradients)}

    out: dict[str, Any] = {} if placed is None else {"out_shardings": (placed, None)}
    return jax.jit(step, donate_argnums=0, **out)


def make_eval_step(graph: nnx.GraphDef, task: Task) -> Callable[..., dict[str, jax.Array]]:
    """(params, rest, batch) -> the task's sums over the batch; `graph` is that of a model in eval mode."""
    return jax.jit(lambda params, rest, batch: task.tally(state.merge(graph, params, rest), batch))
