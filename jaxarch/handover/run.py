"""A training run from torch's files into a checkpoint that training resumes from, and back.

torch's side of a run is a folder with model.safetensors (`model.state_dict()`) and optimizer.pt
(`optimizer.state_dict()`).
"""

import dataclasses
import fnmatch
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.convert.torch_file import load_torch_file
from jaxarch.errors import ConversionError, UsageError, require_torch
from jaxarch.files import locked, replacing, write_whole
from jaxarch.handover.optimizer import (
    Hyper,
    check_groups,
    from_optimizer_state_dict,
    from_torch_optimizer,
    step_of,
    to_optimizer_state_dict,
    torch_rows,
)
from jaxarch.spec import Recipe
from jaxarch.train import checkpoint, tasks
from jaxarch.train.former import with_current_slots
from jaxarch.train.plan import prepare
from jaxarch.train.recipe import optimizer_options, optimizers_of, schedule_of
from jaxarch.train.step import TrainState, create_state

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"


def is_torch_run(folder: Path) -> bool:
    """Whether a folder holds torch's weights and optimizer."""
    return (folder / WEIGHTS).is_file() and (folder / OPTIMIZER).is_file()


def is_training(restored: checkpoint.Restored) -> bool:
    """Whether a checkpoint holds an optimizer's state, and not weights alone."""
    return "recipe" in restored.about and any(k.startswith("opt_state/") for k in restored.leaves)


def from_torch_run(source: Path, target: Path, model: str | None, variant: str | None) -> str:
    """Write a checkpoint that `jaxarch train NAME --out target --resume` resumes from, by the page's recipe.

    The optimizer must be the recipe's, except for its learning rate, which the recipe's schedule gives by the step.
    Random streams start from the recipe's seed.

    Returns:
        One line that says what was written.

    Raises:
        UsageError: the architecture is not given, or has no recipe.
        ConversionError: weights, state or hyper-parameters do not fit it; `target` exists.
    """
    if model is None:
        raise UsageError(f"{source} does not say what it holds: give --model NAME and --variant V")
    if target.exists():
        raise ConversionError(f"{target} exists: choose a new folder")
    state_dict = _read_optimizer(source / OPTIMIZER)
    tensors = read_tensors(source / WEIGHTS)
    run = prepare(model, variant=variant, settings={}, mesh=None, out=target)
    update, hyper = _single_update(run.recipe, run.task)
    if run.recipe.ema:
        raise ConversionError(f"{model} trains with a moving average (ema), which torch's files do not hold")
    about = {**run.about(), "best": None, "stale": 0}
    build = partial(checkpoint.build_model, about)
    state = run.init()
    values = {**state.params, **state.rest}
    rows = layout(nnx.eval_shape(build))
    leaves = from_torch(rows, tensors, {r.path: values[r.path] for r in rows})
    for row in rows:
        actual, expected = tensors[row.torch].dtype, values[row.path].dtype
        if jnp.issubdtype(expected, jnp.floating) and actual != expected:
            raise ConversionError(f"{source / WEIGHTS}: {row.torch} is {actual}, training keeps {expected}")
    trainable = _trainable(torch_rows(build), run.task.updates[update].trains)
    slots, steps_taken, groups = from_optimizer_state_dict(trainable, state_dict)
    check_groups(trainable, state.params, hyper, groups)
    opt_state = from_torch_optimizer(trainable, slots, state.opt_state[update], step=steps_taken)
    arrays, step = {k: jnp.asarray(v) for k, v in leaves.items()}, step_of(opt_state)
    new_state = TrainState(
        step=jnp.asarray(step, state.step.dtype),
        params={k: arrays[k] for k in state.params},
        rest={k: arrays.get(k, v) for k, v in state.rest.items()},
        opt_state={update: opt_state},
        ema_params={},
    )
    checkpoint.save(target / checkpoint.FOLDER, step, new_state, about)
    return f"{target}: {_summary(tensors)}, {run.name} {run.variant}, {hyper.kind} at step {step}"


def to_torch_run(restored: checkpoint.Restored, target: Path) -> str:
    """Write a training checkpoint as torch's two files.

    Returns:
        One line that says what was written.

    Raises:
        ConversionError: the task has several optimizers, or torch has none with this state; `target` exists.
        UsageError: torch is not installed.
    """
    torch = require_torch(f"writing {OPTIMIZER}")
    if target.exists():
        raise ConversionError(f"{target} exists: choose a new folder")
    about = restored.about
    recipe = Recipe(**about["recipe"])
    task = tasks.task(recipe.task, **recipe.task_options)
    update, hyper = _single_update(recipe, task)
    build = partial(checkpoint.build_model, about)
    optimizers = optimizers_of(recipe, task, nnx.eval_shape(build))
    abstract = jax.eval_shape(lambda: create_state(build, task, optimizers, ema=recipe.ema > 0))
    current = with_current_slots(restored.tensors, checkpoint.flatten(abstract))
    leaves = {k: tensor.read() for k, tensor in current.items()}
    opt_state = checkpoint.unflatten(abstract, leaves).opt_state[update]
    tensors = to_torch(layout(restored.abstract()), {**restored.params, **restored.rest})
    trainable = _trainable(torch_rows(build), task.updates[update].trains)
    state_dict = to_optimizer_state_dict(trainable, restored.params, opt_state, hyper)
    with locked(target), replacing(target) as folder:
        folder.mkdir()
        write_tensors(folder / WEIGHTS, tensors)
        write_whole(folder / OPTIMIZER, lambda temporary: torch.save(state_dict, temporary))
    what = f"{about['name']} {about['variant']}, {hyper.kind} at step {state_dict['step']}"
    omitted = "; left out: the moving average" if restored.ema_params else ""
    return f"{target}: {_summary(tensors)}, {what}{omitted}"


def _single_update(recipe: Recipe, task: tasks.Task) -> tuple[str, Hyper]:
    """The name of a task's only update, and the arguments of its optimizer."""
    if len(task.updates) != 1:
        raise ConversionError(
            f"task {recipe.task} trains with {len(task.updates)} optimizers, torch's file holds one"
        )
    (name,) = task.updates
    recipe = dataclasses.replace(recipe, **recipe.updates.get(name, {}))
    options = {k: v for k, v in optimizer_options(recipe).items() if k not in ("groups", "max_grad_value")}
    groups = recipe.optimizer_options.get("groups")
    return name, Hyper(recipe.optimizer, schedule_of(recipe), recipe.weight_decay or 0.0, groups, options)


def _trainable(rows: list[Row], glob: str) -> list[Row]:
    return [r for r in rows if fnmatch.fnmatchcase(r.path, glob)]


def _read_optimizer(path: Path) -> Mapping[str, Any]:
    content = load_torch_file(path, "optimizer")
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not an optimizer's state_dict")
    return content


def _summary(tensors: Mapping[str, Any]) -> str:
    return f"{len(tensors)} tensors, {sum(v.nbytes for v in tensors.values()):,} bytes"
