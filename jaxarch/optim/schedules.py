"""Schedules by the names that recipes use: a linear warm-up and then one of torch's schedulers."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_origin

import jax.numpy as jnp

from jaxarch.errors import UsageError, unknown
from jaxarch.optim import lr_scheduler
from jaxarch.optim.lr_scheduler import LambdaLR, Schedule
from jaxarch.optim.swa_utils import SWALR


def _cosine_decay(learning_rate: float, total_iters: int) -> Schedule:
    length = max(total_iters, 1)
    return LambdaLR(learning_rate, lambda s: 0.5 * (1 + jnp.cos(math.pi * jnp.clip(s / length, 0, 1))))


def _linear_decay(learning_rate: float, total_iters: int) -> Schedule:
    return LambdaLR(learning_rate, lambda s: 1 - jnp.clip(s / max(total_iters, 1), 0, 1))


def _constant(learning_rate: float) -> Schedule:
    return LambdaLR(learning_rate, lambda s: jnp.ones_like(s))


def _one_cycle(
    learning_rate: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    cycle_momentum: bool = False,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    return lr_scheduler.OneCycleLR(
        learning_rate,
        total_steps,
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
    )


def _cyclic(
    learning_rate: float,
    base_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    cycle_momentum: bool = False,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
) -> Schedule:
    return lr_scheduler.CyclicLR(
        base_lr,
        learning_rate,
        step_size_up,
        step_size_down,
        mode,
        gamma,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )


def _sequential(
    learning_rate: float,
    schedulers: Sequence[Mapping[str, Any]],
    milestones: Sequence[int],
    total_iters: int,
) -> Schedule:
    parts = [_part(learning_rate, table, total_iters) for table in schedulers]
    return lr_scheduler.SequentialLR(parts, milestones)


def _chained(learning_rate: float, schedulers: Sequence[Mapping[str, Any]], total_iters: int) -> Schedule:
    parts = [_part(learning_rate, table, total_iters) for table in schedulers]
    return lr_scheduler.ChainedScheduler(parts, total_steps=total_iters)


def _part(learning_rate: float, table: Mapping[str, Any], total_iters: int) -> Schedule:
    """One of several schedules, which a table describes by its name and options."""
    if not isinstance(table, Mapping) or "schedule" not in table:
        raise UsageError(f"each of schedulers is a table with the name of a schedule, not {table!r}")
    options = {k: v for k, v in table.items() if k != "schedule"}
    return create_schedule(table["schedule"], learning_rate, 0, total_iters, **options)


RECIPES: dict[str, Callable[..., Schedule]] = {
    "cosine": _cosine_decay,
    "linear": _linear_decay,
    "constant": _constant,
    "onecycle": _one_cycle,
    "step": lr_scheduler.StepLR,
    "multi_step": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "cosine_annealing": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
    "constant_factor": lr_scheduler.ConstantLR,
    "linear_factor": lr_scheduler.LinearLR,
    "cyclic": _cyclic,
    "swa": SWALR,
    "sequential": _sequential,
    "chained": _chained,
}
SCHEDULES = tuple(RECIPES)
# How each schedule that takes no warm-up begins with one.
OWN_WARMUP = {
    "onecycle": "set pct_start",
    "cyclic": "set step_size_up",
    "sequential": "put a linear_factor first",
    "chained": "add a linear_factor",
}
WITHOUT_OPTIONS = ("cosine", "linear", "constant")
LENGTHS = ("total_iters", "total_steps", "T_max")  # names of the argument that is a schedule's length


def create_schedule(
    kind: str, learning_rate: float, warmup_steps: int, total_steps: int, **options: Any
) -> Schedule:
    """The learning rate of each step, from 0: a linear warm-up and then a schedule of the name `kind`.

    Step s of the warm-up has the factor (s + 1) / warmup_steps. "cosine" and "linear" then decay to 0 at
    `total_steps`, "constant" does not decay; the others are torch's, begun after the warm-up, with the `options` as
    further arguments. Their length is the remainder of `total_steps` unless an option sets it.

    "cyclic" rises from the option `base_lr` to the learning rate. "sequential" and "chained" have a list of tables as
    the option `schedulers`: {"schedule": name, **options}. A schedule that cycles the momentum (`cycle_momentum=True`)
    has it as its attribute `momentum`.

    Raises:
        UsageError: unknown kind or option, an option that is missing or out of range; a warm-up that is longer
            than the training, or of "onecycle", which has its own (`pct_start`).
    """
    if kind not in RECIPES:
        raise unknown("schedule", kind, SCHEDULES)
    if not isinstance(learning_rate, int | float) or not 0 <= learning_rate < math.inf:
        raise UsageError(f"learning_rate must not be negative, but a finite number, not {learning_rate!r}")
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"warmup_steps {warmup_steps} must be between 0 and steps {total_steps}")
    if warmup_steps and kind in OWN_WARMUP:
        raise UsageError(f"{kind} has its own warm-up: {OWN_WARMUP[kind]} and leave out warmup_steps")
    make = RECIPES[kind]
    _, *parameters = inspect.signature(make).parameters.values()
    allowed = [] if kind in WITHOUT_OPTIONS else [p.name for p in parameters]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of schedule {kind}", option, allowed)
    for p in parameters:
        if p.name in LENGTHS:
            options.setdefault(p.name, max(total_steps - warmup_steps, 1))
        elif p.default is p.empty and p.name not in options:
            raise UsageError(f"schedule {kind} needs {p.name}")
        if p.name in options:
            _check_type(kind, p, options[p.name])
    schedule = make(learning_rate, **options)
    if not warmup_steps:
        return schedule
    warmup = LambdaLR(learning_rate, lambda s: (s + 1) / warmup_steps)
    return lr_scheduler.SequentialLR([warmup, schedule], [warmup_steps])


def _check_type(kind: str, parameter: inspect.Parameter, value: Any) -> None:
    """Check an option's type against that of its parameter."""
    if get_origin(parameter.annotation) is Sequence:
        integers = int in get_args(parameter.annotation)
        if not isinstance(value, list | tuple) or (integers and not all(type(v) is int for v in value)):
            words = "a list of integers" if integers else "a list"
            raise UsageError(f"schedule {kind}: {parameter.name} must be {words}, not {value!r}")
        return
    types = get_args(parameter.annotation) or (parameter.annotation,)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is None and type(None) in types:
        return
    for known, words, holds in (
        (bool, "True or False", isinstance(value, bool)),
        (float, "a number", is_number),
        (int, "an integer", is_number and isinstance(value, int)),
        (str, "a name", isinstance(value, str)),
    ):
        if known in types and not holds:
            raise UsageError(f"schedule {kind}: {parameter.name} must be {words}, not {value!r}")
