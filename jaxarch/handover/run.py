"""A training run from torch's files into a checkpoint that training resumes from, and out of one.

On torch's side a run is a folder with model.safetensors (`model.state_dict()`) and optimizer.pt
(`optimizer.state_dict()`).
"""

import dataclasses
import fnmatch
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.errors import ConversionError, UsageError, require_torch
from jaxarch.files import write_whole
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
from jaxarch.train import checkpoint, step, tasks
from jaxarch.train.plan import prepare
from jaxarch.train.recipe import optimizers_of, schedule_of
from jaxarch.train.step import TrainState

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"


def is_torch_run(folder: Path) -> bool:
    """Whether a folder holds torch's weights and optimizer."""
    return (folder / WEIGHTS).is_file() and (folder / OPTIMIZER).is_file()


def is_training(restored: Any) -> bool:
    """Whether a checkpoint holds an optimizer's state, and not weights alone."""
    return "recipe" in restored.about and any(k.startswith("opt_state/") for k in restored.leaves)


def from_torch_run(origin: Path, goal: Path, model: str | None, variant: str | None) -> str:
    """Write the folder of a run that `jaxarch train NAME --out goal --resume` goes on with, by the page's recipe.

    The optimizer must be the recipe's, its learning rate excepted, which the recipe's schedule sets by the step.
    Random streams begin as the recipe's seed says.

    Returns:
        One line that says what was written.

    Raises:
        UsageError: the architecture is not said, or has no recipe.
        ConversionError: weights, state or hyper-parameters do not fit it; `goal` exists.
    """

    if model is None:
        raise UsageError(f"{origin} does not say what it holds: give --model NAME and --variant V")
    if goal.exists():
        raise ConversionError(f"{goal} exists: choose a new folder")
    saved, tensors = _read_optimizer(origin / OPTIMIZER), read_tensors(origin / WEIGHTS)
    run = prepare(model, variant=variant, settings={}, mesh=None, out=goal)
    update, hyper = _hyper(run.recipe, run.task)
    if run.abstract.average:
        raise ConversionError(
            f"{model} trains with a moving average (ema), of which torch's files say nothing"
        )
    about = {**run.about(), "best": None, "stale": 0}
    plan = checkpoint.Restored(goal, goal, about, {}, {}, {}, {})
    before = run.init()
    flat = {**before.params, **before.rest}
    rows = layout(plan.abstract())
    leaves = from_torch(rows, tensors, {r.path: flat[r.path] for r in rows})
    for row in rows:
        have, keep = tensors[row.torch].dtype, flat[row.path].dtype
        if jnp.issubdtype(keep, jnp.floating) and have != keep:
            raise ConversionError(f"{origin / WEIGHTS}: {row.torch} is {have}, training keeps {keep}")
    own = _trained(torch_rows(plan._build), run.task.updates[update].trains)
    slots, steps_taken, groups = from_optimizer_state_dict(own, saved)
    check_groups(own, before.params, hyper, groups)
    taken = from_torch_optimizer(own, slots, before.opt_state[update], step=steps_taken)
    placed, at = {k: jnp.asarray(v) for k, v in leaves.items()}, step_of(taken)
    after = TrainState(
        step=jnp.asarray(at, before.step.dtype),
        params={k: placed[k] for k in before.params},
        rest={k: placed.get(k, v) for k, v in before.rest.items()},
        opt_state={update: taken},
        average={},
    )
    checkpoint.save(goal / checkpoint.FOLDER, at, after, about)
    return f"{goal}: {_told(tensors)}, {run.name} {run.variant}, {hyper.kind} at step {at}"


def to_torch_run(restored: Any, goal: Path) -> str:
    """Write a training checkpoint as torch's two files.

    Returns:
        One line that says what was written.

    Raises:
        ConversionError: training has several optimizers, or one that torch keeps otherwise; `goal` exists.
        UsageError: torch is not installed.
    """

    torch = require_torch(f"writing {OPTIMIZER}")
    if goal.exists():
        raise ConversionError(f"{goal} exists: choose a new folder")
    about = restored.about
    recipe = Recipe(**about["recipe"])
    task = tasks.task(recipe.task, **recipe.task_options)
    update, hyper = _hyper(recipe, task)
    optimizers = optimizers_of(recipe, task)
    abstract = jax.eval_shape(
        lambda: step.create_state(restored._build, task, optimizers, average=recipe.ema > 0)
    )
    held = checkpoint.unflatten(abstract, restored.leaves)
    rows = layout(restored.abstract())
    tensors = to_torch(rows, {**restored.params, **restored.rest})
    own = _trained(torch_rows(restored._build), task.updates[update].trains)
    saved = to_optimizer_state_dict(own, restored.params, held.opt_state[update], hyper)
    write_tensors(goal / WEIGHTS, tensors)
    write_whole(goal / OPTIMIZER, lambda temporary: torch.save(saved, temporary))
    told = (
        f"{goal}: {_told(tensors)}, {about['name']} {about['variant']}, {hyper.kind} at step {saved['step']}"
    )
    return told + ("; left out: the moving average" if held.average else "")


def _hyper(recipe: Any, task: Any) -> tuple[str, Hyper]:
    """The name of a task's only update, and its optimizer."""

    if len(task.updates) != 1:
        raise ConversionError(
            f"task {recipe.task} trains with {len(task.updates)} optimizers, torch's file holds one"
        )
    (name,) = task.updates
    own = dataclasses.replace(recipe, **recipe.updates.get(name, {}))
    options = {k: v for k, v in own.optimizer_options.items() if k not in ("groups", "max_grad_value")}
    groups = own.optimizer_options.get("groups")
    return name, Hyper(own.optimizer, schedule_of(own), own.weight_decay or 0.0, groups, options)


def _trained(rows: list[Row], glob: str) -> list[Row]:
    return [r for r in rows if fnmatch.fnmatchcase(r.path, glob)]


def _read_optimizer(path: Path) -> Mapping[str, Any]:
    torch = require_torch(f"reading {path.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise ConversionError(f"{path} is damaged or holds more than an optimizer's state_dict") from None
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not an optimizer's state_dict")
    return content


def _told(tensors: Mapping[str, Any]) -> str:
    return f"{len(tensors)} tensors, {sum(v.nbytes for v in tensors.values()):,} bytes"
