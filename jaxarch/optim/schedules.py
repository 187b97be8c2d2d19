"""Learning rates as functions of the step, equal to torch.optim.lr_scheduler value for value.

Each function has the name of torch's class and takes its arguments, the learning rate first. It returns an optax
schedule: a function from a step, counted from 0, to a number, inside jit too. The rate of step s is what torch's
optimizer uses for its step s + 1 when the scheduler is stepped after the optimizer.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.errors import UsageError, unknown

Schedule = Callable[[Any], Any]
# A step or a rate as a scalar array of the default float type.
Scalar = Float[Array, ""]
ANNEALS = ("cos", "linear")


def constant_lr(learning_rate: float, factor: float = 1 / 3, total_iters: int = 5) -> Schedule:
    """`factor` times the rate before step `total_iters`, then the rate."""
    _check(0 < factor <= 1, f"factor {factor} must be in (0, 1]")
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")
    return _of_step(lambda s: learning_rate * jnp.where(s < total_iters, factor, 1.0))


def linear_lr(
    learning_rate: float, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
) -> Schedule:
    """From `start_factor` to `end_factor` times the rate, linearly until step `total_iters`."""
    _check(0 < start_factor <= 1, f"start_factor {start_factor} must be in (0, 1]")
    _check(0 <= end_factor <= 1, f"end_factor {end_factor} must be in [0, 1]")
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")
    rise = end_factor - start_factor
    return _of_step(
        lambda s: learning_rate * (start_factor + rise * jnp.minimum(s, total_iters) / total_iters)
    )


def step_lr(learning_rate: float, step_size: int, gamma: float = 0.1) -> Schedule:
    """The rate times `gamma` every `step_size` steps."""
    _check(step_size >= 1, f"step_size {step_size} must be at least 1")
    return _of_step(lambda s: learning_rate * gamma ** jnp.floor(s / step_size))


def multi_step_lr(learning_rate: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """The rate times `gamma` at each milestone; a repeated milestone counts twice."""
    points = tuple(milestones)
    return _of_step(
        lambda s: learning_rate * gamma ** sum((jnp.where(s >= m, 1.0, 0.0) for m in points), 0.0 * s)
    )


def exponential_lr(learning_rate: float, gamma: float) -> Schedule:
    """The rate times `gamma` every step."""
    return _of_step(lambda s: learning_rate * gamma**s)


def polynomial_lr(learning_rate: float, total_iters: int = 5, power: float = 1.0) -> Schedule:
    """(1 - s / total_iters)^power times the rate, and 0 from step `total_iters` on."""
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")
    return _of_step(lambda s: learning_rate * (1 - jnp.minimum(s, total_iters) / total_iters) ** power)


def cosine_annealing_lr(learning_rate: float, T_max: int, eta_min: float = 0.0) -> Schedule:
    """Half a cosine down to `eta_min` at step `T_max` (Loshchilov and Hutter 2017); after it the rate rises again."""
    _check(T_max >= 1, f"T_max {T_max} must be at least 1")
    return _of_step(lambda s: eta_min + (learning_rate - eta_min) * (1 + jnp.cos(math.pi * s / T_max)) / 2)


def cosine_annealing_warm_restarts(
    learning_rate: float, T_0: int, T_mult: int = 1, eta_min: float = 0.0
) -> Schedule:
    """Half cosines down to `eta_min`, the first of T_0 steps, each T_mult times as long as the previous one."""
    _check(T_0 >= 1, f"T_0 {T_0} must be at least 1")
    _check(T_mult >= 1, f"T_mult {T_mult} must be at least 1")
    starts, lengths = [0], [T_0]
    while T_mult > 1 and starts[-1] < 2**31:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * T_mult)

    def rate(s: Scalar) -> Scalar:
        if T_mult == 1:
            done = jnp.mod(s, T_0) / T_0
        else:
            start, length = jnp.asarray(starts, s.dtype), jnp.asarray(lengths, s.dtype)
            cycle = (s >= start).sum() - 1
            done = (s - start[cycle]) / length[cycle]
        return eta_min + (learning_rate - eta_min) * (1 + jnp.cos(math.pi * done)) / 2

    return _of_step(rate)


def one_cycle_lr(
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up from max_lr / div_factor to max_lr, then down to the initial rate / final_div_factor (Smith and Topin 2018).

    With `three_phase` down to the initial rate in as many steps as up, and then to the final one. Step `total_steps`
    is the last that torch takes; after it the rate is constant.
    """
    initial = max_lr / div_factor
    final = initial / final_div_factor
    values = [initial, max_lr, initial, final] if three_phase else [initial, max_lr, final]
    return _one_cycle(values, total_steps, pct_start, anneal_strategy)


def one_cycle_momentum(
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    three_phase: bool = False,
) -> Schedule:
    """OneCycleLR's `cycle_momentum`: it falls while the rate rises. For SGD's momentum or the first of Adam's betas."""
    values = [max_momentum, base_momentum, max_momentum] + [max_momentum] * three_phase
    return _one_cycle(values, total_steps, pct_start, anneal_strategy)


def sequential_lr(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after another: the next begins at each milestone, with its step 0."""
    _check(
        len(milestones) == len(schedules) - 1,
        f"{len(schedules)} schedules need {len(schedules) - 1} milestones, not {len(milestones)}",
    )
    _check(list(milestones) == sorted(milestones), f"milestones {list(milestones)} must rise")

    def rate(s: Scalar) -> Scalar:
        value = schedules[0](s)
        for schedule, start in zip(schedules[1:], milestones, strict=True):
            value = jnp.where(s >= start, schedule(jnp.maximum(s - start, 0)), value)
        return value

    return _of_step(rate)


def chained_lr(learning_rate: float, schedules: Sequence[Schedule]) -> Schedule:
    """torch's ChainedScheduler: the product of schedules of the learning rate 1.

    With a cosine it matches torch up to its T_max only: beyond, torch's recursion is no factor of the rate.
    """
    _check(len(schedules) >= 1, "there are no schedules to chain")
    return _of_step(lambda s: learning_rate * math.prod(schedule(s) for schedule in schedules))


class Plateau(NamedTuple):
    """The state of `reduce_on_plateau`: the rate to use next, and the attributes of torch's scheduler."""

    learning_rate: Float[Array, ""]
    best: Float[Array, ""]
    bad: Int[Array, ""]
    cooldown: Int[Array, ""]


class ReduceOnPlateau(NamedTuple):
    """init() -> state; update(state, metric) -> state."""

    init: Callable[[], Plateau]
    update: Callable[[Plateau, Any], Plateau]


def reduce_on_plateau(
    learning_rate: float,
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_lr: float = 0.0,
    eps: float = 1e-8,
) -> ReduceOnPlateau:
    """torch's ReduceLROnPlateau as two pure functions: `factor` times the rate when the metric stops improving.

    Raises:
        UsageError: an unknown mode, or a factor of 1 or more.
    """
    if mode not in ("min", "max"):
        raise unknown("mode", mode, ("min", "max"))
    if threshold_mode not in ("rel", "abs"):
        raise unknown("threshold_mode", threshold_mode, ("rel", "abs"))
    _check(factor < 1, f"factor {factor} must be below 1")
    sign = 1 if mode == "max" else -1

    def init() -> Plateau:
        dtype = jnp.result_type(float)
        zero = jnp.zeros((), jnp.int32)
        return Plateau(jnp.asarray(learning_rate, dtype), jnp.asarray(-sign * math.inf, dtype), zero, zero)

    def update(state: Plateau, metric: Any) -> Plateau:
        metric = jnp.asarray(metric).astype(state.best.dtype)
        bound = (
            state.best * (1 + sign * threshold) if threshold_mode == "rel" else state.best + sign * threshold
        )
        better = metric > bound if mode == "max" else metric < bound
        cooling = state.cooldown > 0
        bad = jnp.where(better | cooling, 0, state.bad + 1)
        reduce = bad > patience
        lower = jnp.maximum(state.learning_rate * factor, min_lr)
        lower = jnp.where(state.learning_rate - lower > eps, lower, state.learning_rate)
        return Plateau(
            learning_rate=jnp.where(reduce, lower, state.learning_rate),
            best=jnp.where(better, metric, state.best),
            bad=jnp.where(reduce, 0, bad),
            cooldown=jnp.where(reduce, cooldown, jnp.maximum(state.cooldown - 1, 0)).astype(jnp.int32),
        )

    return ReduceOnPlateau(init, update)


# ------------------------------------------------------------------------------- schedules by their names


def _cosine_decay(learning_rate: float, total_iters: int) -> Schedule:
    done = _of_step(lambda s: jnp.clip(s / max(total_iters, 1), 0, 1))
    return lambda s: learning_rate * 0.5 * (1 + jnp.cos(math.pi * done(s)))


def _linear_decay(learning_rate: float, total_iters: int) -> Schedule:
    return _of_step(lambda s: learning_rate * (1 - jnp.clip(s / max(total_iters, 1), 0, 1)))


def _constant(learning_rate: float) -> Schedule:
    return _of_step(lambda s: learning_rate * jnp.ones_like(s))


RECIPES: dict[str, Callable[..., Schedule]] = {
    "cosine": _cosine_decay,
    "linear": _linear_decay,
    "constant": _constant,
    "onecycle": one_cycle_lr,
    "step": step_lr,
    "multi_step": multi_step_lr,
    "exponential": exponential_lr,
    "polynomial": polynomial_lr,
    "cosine_annealing": cosine_annealing_lr,
    "cosine_restarts": cosine_annealing_warm_restarts,
}
SCHEDULES = tuple(RECIPES)
WITHOUT_OPTIONS = ("cosine", "linear", "constant")
LENGTHS = ("total_iters", "total_steps", "T_max")  # names of the argument that is a schedule's length


def create_schedule(
    kind: str, learning_rate: float, warmup_steps: int, total_steps: int, **options: Any
) -> Schedule:
    """The learning rate of each step, from 0: a linear warm-up and then a schedule of the name `kind`.

    Step s of the warm-up has the factor (s + 1) / warmup_steps. "cosine" and "linear" then decay to 0 at
    `total_steps`, "constant" does not decay; the others are the functions of this module, begun after the warm-up,
    with the `options` as further arguments. Their length is the remainder of `total_steps` unless an option sets it.

    Raises:
        UsageError: unknown kind or option, an option that is missing or out of range; a warm-up that is longer
            than the training, or of "onecycle", which has its own (`pct_start`).
    """
    if kind not in RECIPES:
        raise unknown("schedule", kind, SCHEDULES)
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(f"warmup_steps {warmup_steps} must be between 0 and steps {total_steps}")
    if kind == "onecycle" and warmup_steps:
        raise UsageError("onecycle has its own warm-up: set pct_start and leave out warmup_steps")
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
    schedule = make(learning_rate, **options)
    if not warmup_steps:
        return schedule
    warmup = _of_step(lambda s: learning_rate * (s + 1) / warmup_steps)
    return sequential_lr([warmup, schedule], [warmup_steps])


# -------------------------------------------------------------------------------------------------- shared


def _of_step(rate: Schedule) -> Schedule:
    """The schedule of a rate that takes the step as a float."""
    return lambda step: rate(jnp.asarray(step, jnp.result_type(float)))


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _one_cycle(values: Sequence[float], total_steps: int, pct_start: float, anneal_strategy: str) -> Schedule:
    """From one value to the next, annealed over the phase between them."""
    if anneal_strategy not in ANNEALS:
        raise unknown("anneal_strategy", anneal_strategy, ANNEALS)
    _check(total_steps >= 1, f"total_steps {total_steps} must be at least 1")
    _check(0 <= pct_start <= 1, f"pct_start {pct_start} must be in [0, 1]")
    up = pct_start * total_steps
    ends = [up - 1, 2 * up - 2, total_steps - 1] if len(values) == 4 else [up - 1, total_steps - 1]
    starts = [0.0, *ends[:-1]]
    if any(end == start for start, end in zip(starts, ends, strict=True)):
        raise UsageError(f"pct_start {pct_start} of {total_steps} steps leaves a phase without a step")

    phases = list(zip(starts, ends, values[:-1], values[1:], strict=True))

    def anneal(s: Scalar, start: float, end: float, a: float, b: float) -> Scalar:
        done = (s - start) / (end - start)
        if anneal_strategy == "cos":
            return b + (a - b) / 2 * (1 + jnp.cos(math.pi * done))
        return (b - a) * done + a

    def rate(s: Scalar) -> Scalar:
        s = jnp.minimum(s, total_steps)
        value = anneal(s, *phases[-1])
        for start, end, a, b in reversed(phases[:-1]):
            value = jnp.where(s <= end, anneal(s, start, end, a, b), value)
        return value

    return _of_step(rate)
