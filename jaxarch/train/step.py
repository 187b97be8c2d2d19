"""One optimizer step, jitted, with the state donated; and one evaluation step."""

import contextlib
import fnmatch
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxarch.autodiff.monitor import AutogradMonitor
from jaxarch.errors import UsageError
from jaxarch.nn import accumulation_dtype
from jaxarch.state import Flat, merge, rest_of, set_by_call, split
from jaxarch.train.tasks import Batch, Task, Update

if TYPE_CHECKING:  # type checkers know the standard library's decorator, not chex's
    from dataclasses import dataclass
else:
    from chex import dataclass

Metrics: TypeAlias = dict[str, Any]
Optimizers: TypeAlias = Mapping[str, optax.GradientTransformation] | optax.GradientTransformation


@dataclass(frozen=True)
class TrainState:
    """Everything that changes in training, as flat dictionaries by path.

    Attributes:
        step: the number of steps taken.
        params: the trainable parameters.
        rest: the remaining state of the model: running statistics, buffers, random streams.
        opt_state: the optimizer state of each of the task's updates.
        ema_params: the exponential moving average of `params`; empty without averaging.
    """

    step: Any
    params: dict[str, Any]
    rest: dict[str, Any]
    opt_state: dict[str, Any]
    ema_params: dict[str, Any]


TrainStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def create_state(
    build: Callable[[], nnx.Module], task: Task, optimizers: Optimizers, *, ema: bool = False
) -> TrainState:
    """The state before the first step. Under jit with `out_shardings` it is created already sharded."""
    _, params, rest = split(build())
    optimizers = by_update(task, optimizers)
    opt_state = {k: optimizers[k].init(trainable_params(params, u)) for k, u in task.updates.items()}
    # A copy: the state is donated, and a buffer can be donated only once.
    ema_params = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, rest=rest, opt_state=opt_state, ema_params=ema_params
    )


def make_train_step(
    graph: nnx.GraphDef,
    task: Task,
    optimizers: Optimizers,
    *,
    mixed_precision: bool = False,
    accumulate: int = 1,
    ema: float = 0.0,
    seed: int = 0,
    shardings: Any = None,
    monitor: AutogradMonitor | None = None,
) -> TrainStep:
    """(state, batch) -> (new_state, metrics), the metrics {"loss", "grad_norm", ...} left on the device.

    The task's updates are taken in order, each with its own optimizer, and gradients at the parameters that the
    previous update returned. With several updates the metrics of each carry its name (`loss_critic`), and "loss"
    is the sum of their losses. Gradients are those of the whole batch, however it is sharded.

    Args:
        graph: of the model in training mode.
        optimizers: one for each update, by name, or one for all.
        mixed_precision: compute the model in bfloat16; parameters, moments and running statistics keep their
            dtypes.
        accumulate: the number of parts the batch is computed in, one after another. Their mean gradient is that
            of the batch where every part has the same weight, as parts of equally weighted rows have.
        ema: decay of the exponential moving average of the parameters; 0 for none.
        seed: of the random numbers that the task draws.
        shardings: of the state, which are kept; None leaves them to the compiler.
        monitor: its measures are in the metrics under "monitor".
    """
    optimizers = by_update(task, optimizers)

    def loss_of_part(
        trainable: Flat, update: Update, params: Flat, rest: Flat, batch: Batch, step: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Flat, Flat]]:
        """(loss, (metrics, what the call changed of parameters, the remaining state)) of a batch or a part of it."""
        full_params = {**params, **trainable}
        full_params = cast_to_bfloat16(full_params) if mixed_precision else full_params
        model = merge(graph, full_params, rest)
        watch: Any = monitor.watch(model, step) if monitor else contextlib.nullcontext()
        with watch as zero_activations:
            loss = update.loss(model, cast_to_bfloat16(batch) if mixed_precision else batch)
        metrics: Metrics
        loss, metrics = loss if isinstance(loss, tuple) else (loss, {})
        if monitor:
            metrics = {**metrics, "monitor": {"zero_activations": zero_activations}}
        changes = {k: v - full_params[k] for k, v in set_by_call(model, full_params).items()}
        return loss.astype(accumulation_dtype(loss.dtype)), (metrics, changes, rest_of(model))

    def grads_of_part(
        update: Update, trainable: Flat, params: Flat, rest: Flat, batch: Batch, step: jax.Array
    ) -> tuple[Flat, Metrics, Flat, Flat]:
        """(grads, metrics, what the call changed of parameters, the remaining state) of a batch or a part of it."""
        value_and_grad = jax.value_and_grad(loss_of_part, has_aux=True)
        (loss, (metrics, changes, rest)), grads = value_and_grad(trainable, update, params, rest, batch, step)
        return grads, {"loss": loss, **metrics}, changes, rest

    def compute_grads(
        update: Update, trainable: Flat, params: Flat, rest: Flat, batch: Batch, step: jax.Array
    ) -> tuple[Flat, Metrics, Flat, Flat]:
        """(grads, metrics, changes, the remaining state), accumulated over the parts of the batch."""
        if accumulate == 1:
            return grads_of_part(update, trainable, params, rest, batch, step)
        parts = parts_of(batch, accumulate)
        first = {k: v[0] for k, v in parts.items()}
        grads, metrics, changes, rest = grads_of_part(update, trainable, params, rest, first, step)

        def add(carry: Any, part: Batch) -> tuple[Any, None]:
            *sums, changes, rest = carry
            *terms, new_changes, rest = grads_of_part(update, trainable, params, rest, part, step)
            grads, metrics = jax.tree.map(jnp.add, sums, terms)
            # Parts begin at the same parameters: where two change one, both change it alike.
            changes = jax.tree.map(lambda a, b: jnp.where(a != 0, a, b), changes, new_changes)
            return (grads, metrics, changes, rest), None

        others = {k: v[1:] for k, v in parts.items()}
        (grads, metrics, changes, rest), _ = jax.lax.scan(add, (grads, metrics, changes, rest), others)
        grads, metrics = jax.tree.map(lambda x: x / accumulate, (grads, metrics))
        return grads, metrics, changes, rest

    def compute_loss(
        trainable: Flat, update: Update, params: Flat, rest: Flat, batch: Batch, step: jax.Array
    ) -> jax.Array:
        """The loss of the batch, which L-BFGS evaluates at other parameters from the same remaining state."""

        def next_part(rest: Flat, part: Batch) -> tuple[Flat, jax.Array]:
            loss, (_, _, rest) = loss_of_part(trainable, update, params, rest, part, step)
            return rest, loss

        return jax.lax.scan(next_part, rest, parts_of(batch, accumulate))[1].mean()

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step, params, rest, opt_state = state.step, state.params, state.rest, dict(state.opt_state)
        metrics: Metrics = {}
        draws = 0
        for name, update in task.updates.items():
            for _ in range(update.times):
                update_batch = batch
                if task.draw:
                    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), draws)
                    update_batch, draws = task.draw(key, batch), draws + 1
                trainable = trainable_params(params, update)
                value_fn = partial(
                    compute_loss, update=update, params=params, rest=rest, batch=update_batch, step=step
                )
                grads, update_metrics, changes, rest = compute_grads(
                    update, trainable, params, rest, update_batch, step
                )
                params = {**params, **{k: params[k] + v.astype(params[k].dtype) for k, v in changes.items()}}
                trainable = {k: params[k] for k in trainable}
                optimizer = optax.with_extra_args_support(optimizers[name])
                updates, opt_state[name] = optimizer.update(
                    grads, opt_state[name], trainable, value=update_metrics["loss"], value_fn=value_fn
                )
                new_params = optax.apply_updates(trainable, updates)
                if update.bound:
                    new_params = {k: jnp.clip(v, -update.bound, update.bound) for k, v in new_params.items()}
                params = {**params, **new_params}
                update_metrics["grad_norm"] = optax.tree.norm(grads)
                if monitor:
                    update_metrics["monitor"] |= monitor.measure(trainable, grads, updates, step)
            suffix = "" if len(task.updates) == 1 else f"_{name}"
            metrics |= {f"{k}{suffix}": v for k, v in update_metrics.items()}
        if "loss" not in metrics:
            metrics["loss"] = jnp.stack([metrics[f"loss_{name}"] for name in task.updates]).sum()
        ema_params = update_ema(state.ema_params, params, ema) if ema else {}
        new_state = TrainState(
            step=step + 1, params=params, rest=rest, opt_state=opt_state, ema_params=ema_params
        )
        return new_state, metrics

    out_shardings: dict[str, Any] = {} if shardings is None else {"out_shardings": (shardings, None)}
    return jax.jit(train_step, donate_argnums=0, **out_shardings)


def make_eval_step(graph: nnx.GraphDef, task: Task) -> Callable[[Flat, Flat, Batch, int], Metrics]:
    """(params, rest, batch, index) -> the task's sums over the batch.

    The index of the batch seeds the random numbers that the task draws: they are the same in every evaluation.

    Args:
        graph: of the model in evaluation mode.
    """

    def eval_step(params: Flat, rest: Flat, batch: Batch, index: jax.Array) -> Metrics:
        if task.draw:
            batch = task.draw(jax.random.fold_in(jax.random.key(0), index), batch)
        return task.tally(merge(graph, params, rest), batch)

    return jax.jit(eval_step)


def by_update(task: Task, optimizers: Optimizers) -> Mapping[str, optax.GradientTransformation]:
    """The optimizer of each update; a single one is that of every update."""
    return optimizers if isinstance(optimizers, Mapping) else dict.fromkeys(task.updates, optimizers)


def parts_of(batch: Batch, n: int) -> Batch:
    """The n parts of a batch along a new leading axis.

    Part i holds rows i, i + n, ...: each device contributes rows to every part.
    """
    return {k: v.reshape(-1, n, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}


def trainable_params(params: Flat, update: Update) -> Flat:
    """The parameters that an update trains.

    Raises:
        UsageError: there are none.
    """
    trainable = {k: v for k, v in params.items() if fnmatch.fnmatchcase(k, update.trains)}
    if not trainable:
        raise UsageError(f"no parameter matches {update.trains!r}, which an update of the task trains")
    return trainable


def update_ema(ema_params: Flat, params: Flat, decay: float) -> Flat:
    """The exponential moving average of the parameters after one more step."""
    return jax.tree.map(lambda average, p: average + (1 - decay) * (p - average), ema_params, params)


def cast_to_bfloat16(tree: Any) -> Any:
    """The tree with its floating leaves in bfloat16."""
    return jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
