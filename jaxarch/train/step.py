"""One optimizer step, jitted, with the state donated; and one evaluation step."""

import contextlib
import fnmatch
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxarch import state
from jaxarch.errors import UsageError
from jaxarch.nn import accumulation_dtype
from jaxarch.train.tasks import Task, Update

if TYPE_CHECKING:  # the type checker knows the standard library's decorator, not chex's
    from dataclasses import dataclass

    from jaxarch.autodiff.monitor import AutogradMonitor
else:
    from chex import dataclass


@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as flat dictionaries by path.

    `opt_state` has one entry for each of the task's updates; `average` is empty without averaging.
    """

    step: Any
    params: dict[str, Any]
    rest: dict[str, Any]
    opt_state: dict[str, Any]
    average: dict[str, Any]


def half(tree: Any) -> Any:
    """Floating leaves as bfloat16."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


Optimizers: TypeAlias = Mapping[str, optax.GradientTransformation] | optax.GradientTransformation


def by_update(task: Task, optimizers: Optimizers) -> Mapping[str, optax.GradientTransformation]:
    """The optimizer of each update; one alone is that of every update."""
    return optimizers if isinstance(optimizers, Mapping) else dict.fromkeys(task.updates, optimizers)


def trained(params: Mapping[str, Any], update: Update) -> dict[str, Any]:
    """The parameters that an update trains.

    Raises:
        UsageError: there are none.
    """
    found = {k: v for k, v in params.items() if fnmatch.fnmatchcase(k, update.trains)}
    if not found:
        raise UsageError(f"no parameter matches {update.trains!r}, which an update of the task trains")
    return found


def create_state(
    build: Callable[[], nnx.Module],
    task: Task,
    optimizers: Optimizers,
    *,
    average: bool = False,
) -> TrainState:
    """The state before the first step. Call it under jit with `out_shardings`, and it is born sharded."""
    _, params, rest = state.split(build())
    optimizers = by_update(task, optimizers)
    opt_state = {k: optimizers[k].init(trained(params, u)) for k, u in task.updates.items()}
    # A copy: a donated buffer may stand in the state only once.
    copy = jax.tree.map(jnp.copy, params) if average else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, rest=rest, opt_state=opt_state, average=copy
    )


def make_train_step(
    graph: nnx.GraphDef,
    task: Task,
    optimizers: Optimizers,
    *,
    mixed_precision: bool = False,
    accumulate: int = 1,
    average: float = 0.0,
    seed: int = 0,
    placed: Any = None,
    monitor: "AutogradMonitor | None" = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (state, {"loss", "grad_norm", ...}), both left on the device.

    The task's updates are taken in order, each with its own optimizer and its own gradient at the parameters
    that the one before left; the metrics of one among several carry its name (`loss_critic`), "loss" is then the sum.
    With `mixed_precision` the model computes in bfloat16; parameters, moments and running statistics stay
    as they are. With `accumulate` = k the batch is taken in k parts, one after another, and their mean
    gradient makes one step: the batch's own gradient where every part weighs the same, as rows do.
    With `average` = d the state keeps the exponential moving average of the parameters with decay d.
    `placed` are the shardings of the state, which the step keeps; the compiler's choice if None. Gradients
    of a batch are those of the whole batch, however it is sharded. What the `monitor` measures is in the
    metrics under "monitor".
    """

    optimizers = by_update(task, optimizers)

    def part_of(update, own, params, rest, batch, at):
        def loss_of(own):
            whole = {**params, **own}
            model = state.merge(graph, half(whole) if mixed_precision else whole, rest)
            watching: Any = monitor.watch(model, at) if monitor else contextlib.nullcontext()
            with watching as seen:
                loss = update.loss(model, half(batch) if mixed_precision else batch)
            loss, extra = loss if isinstance(loss, tuple) else (loss, {})
            if monitor:
                extra = {**extra, "monitor": {"zero_activations": seen}}
            return loss.astype(accumulation_dtype(loss.dtype)), (extra, state.rest_of(model))

        (loss, (extra, rest)), gradients = jax.value_and_grad(loss_of, has_aux=True)(own)
        return {"loss": loss, **extra}, gradients, rest

    def gradients_of(update, own, params, rest, batch, at):
        if accumulate == 1:
            return part_of(update, own, params, rest, batch, at)
        # Part i holds rows i, i + k, ...: each device gives some of its rows to every part.
        parts = {k: v.reshape(-1, accumulate, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}
        first = {k: v[0] for k, v in parts.items()}
        told, gradients, rest = part_of(update, own, params, rest, first, at)

        def add(carry, part):
            told, gradients, rest = carry
            more, extra, rest = part_of(update, own, params, rest, part, at)
            return (*jax.tree.map(jnp.add, (told, gradients), (more, extra)), rest), None

        others = {k: v[1:] for k, v in parts.items()}
        (told, gradients, rest), _ = jax.lax.scan(add, (told, gradients, rest), others)
        told, gradients = jax.tree.map(lambda g: g / accumulate, (told, gradients))
        return told, gradients, rest

    def step(before: TrainState, batch):
        params, rest, opt_state = before.params, before.rest, dict(before.opt_state)
        metrics: dict[str, jax.Array] = {}
        draws = 0
        for name, update in task.updates.items():
            for _ in range(update.times):
                drawn = batch
                if task.draw:
                    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), before.step), draws)
                    drawn, draws = task.draw(key, batch), draws + 1
                own = trained(params, update)
                told, gradients, rest = gradients_of(update, own, params, rest, drawn, before.step)
                changes, opt_state[name] = optimizers[name].update(gradients, opt_state[name], own)
                if monitor:
                    told["monitor"] |= monitor.measure(own, gradients, changes, before.step)
                moved = optax.apply_updates(own, changes)
                if update.bound:
                    moved = {k: jnp.clip(v, -update.bound, update.bound) for k, v in moved.items()}
                params = {**params, **moved}
                told["grad_norm"] = optax.tree.norm(gradients)
            alone = len(task.updates) == 1
            metrics |= {k if alone else f"{k}_{name}": v for k, v in told.items()}
        if "loss" not in metrics:
            metrics["loss"] = jnp.stack([metrics[f"loss_{name}"] for name in task.updates]).sum()
        kept = (
            jax.tree.map(lambda a, p: a + (1 - average) * (p - a), before.average, params) if average else {}
        )
        after = TrainState(step=before.step + 1, params=params, rest=rest, opt_state=opt_state, average=kept)
        return after, metrics

    out: dict[str, Any] = {} if placed is None else {"out_shardings": (placed, None)}
    return jax.jit(step, donate_argnums=0, **out)


def make_eval_step(graph: nnx.GraphDef, task: Task) -> Callable[..., dict[str, jax.Array]]:
    """(params, rest, batch, index) -> the task's sums over the batch; `graph` is that of a model in eval mode.

    The index of the batch decides what the task draws, the same at every evaluation.
    """

    def count(params, rest, batch, index):
        drawn = task.draw(jax.random.fold_in(jax.random.key(0), index), batch) if task.draw else batch
        return task.tally(state.merge(graph, params, rest), drawn)

    return jax.jit(count)
