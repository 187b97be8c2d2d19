"""torch.optim.lr_scheduler's schedulers as functions of the step, equal to them value for value.

Each has the name of torch's class and takes its arguments, with the learning rate in place of the optimizer. It
returns an optax schedule: a function from a step, counted from 0, to a number, inside jit too. The rate of step s is
what torch's optimizer uses for its step s + 1 when the scheduler is stepped after the optimizer.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import UsageError, unknown
from jaxarch.optim.plateau import ReduceLROnPlateau

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
]

# A step or a rate as a scalar array of the default float type.
Scalar = Float[Array, ""]
Rate = Callable[[Any], Any]
ANNEALS = ("cos", "linear")
MODES = ("triangular", "triangular2", "exp_range")


@dataclass(frozen=True, eq=False)
class Schedule:
    """A number as a function of the step.

    Attributes:
        name: of torch's scheduler.
        lr: the learning rate that it begins with.
        rate: the value at a step that is a float.
        advance: torch's recursion: the rate of the step before and a step -> the rate, in Python's numbers.
        factor: the rate of the learning rate 1, where the value is a factor of `lr`.
        momentum: the momentum, or the first of the betas, that torch's scheduler sets beside the rate.
        begun: the `rate` after another schedule, given the last value of that, which torch goes on from.
    """

    name: str
    lr: Any
    rate: Rate
    advance: Callable[[float, int], float]
    factor: Rate | None = None
    momentum: "Schedule | None" = None
    begun: Callable[[Any], Rate] | None = None

    def __call__(self, step: Any) -> Any:
        """The value at a step, counted from 0."""
        return self.rate(jnp.asarray(step, jnp.result_type(float)))


def LambdaLR(lr: Any, lr_lambda: Callable[[Any], Any]) -> Schedule:
    """`lr_lambda` of the step, a whole number of the default float type, times the rate."""
    return _absolute("LambdaLR", lr, lambda s: lr * lr_lambda(s) * jnp.ones_like(s))


def MultiplicativeLR(lr: Any, lr_lambda: Callable[[Any], Any]) -> Schedule:
    """The rate times `lr_lambda` of every step from 1 on; it takes as many evaluations as the step counts."""

    def begun(start: Any) -> Rate:
        def rate(s: Scalar) -> Scalar:
            first = jnp.asarray(start, s.dtype)
            times = lambda i, value: value * lr_lambda(i.astype(s.dtype))  # noqa: E731
            return jax.lax.fori_loop(1, _integer(s) + 1, times, first)

        return rate

    advance = lambda value, t: value * float(lr_lambda(float(t))) if t else value  # noqa: E731
    return Schedule("MultiplicativeLR", lr, begun(lr), advance, begun=begun)


def StepLR(lr: Any, step_size: int, gamma: float = 0.1) -> Schedule:
    """The rate times `gamma` every `step_size` steps."""
    _check(step_size >= 1, f"step_size {step_size} must be at least 1")
    factor = lambda s: gamma ** jnp.floor(s / step_size)  # noqa: E731
    return _factor(
        "StepLR", lr, factor, lambda value, t: value * gamma if t and t % step_size == 0 else value
    )


def MultiStepLR(lr: Any, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """The rate times `gamma` at each milestone; a repeated milestone counts twice."""
    points = tuple(milestones)
    factor = lambda s: gamma ** sum((jnp.where(s >= m, 1.0, 0.0) for m in points), 0.0 * s)  # noqa: E731
    return _factor("MultiStepLR", lr, factor, lambda value, t: value * gamma ** points.count(t))


def ConstantLR(lr: Any, factor: float = 1 / 3, total_iters: int = 5) -> Schedule:
    """`factor` times the rate before step `total_iters`, then the rate."""
    _check(0 < factor <= 1, f"factor {factor} must be in (0, 1]")
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")

    def advance(value: float, t: int) -> float:
        return value * factor if t == 0 else value / factor if t == total_iters else value

    return _factor("ConstantLR", lr, lambda s: jnp.where(s < total_iters, factor, 1.0), advance)


def LinearLR(lr: Any, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5) -> Schedule:
    """From `start_factor` to `end_factor` times the rate, linearly until step `total_iters`."""
    _check(0 < start_factor <= 1, f"start_factor {start_factor} must be in (0, 1]")
    _check(0 <= end_factor <= 1, f"end_factor {end_factor} must be in [0, 1]")
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")
    rise = end_factor - start_factor

    def advance(value: float, t: int) -> float:
        if t == 0:
            return value * start_factor
        return (
            value if t > total_iters else value * (1 + rise / (total_iters * start_factor + (t - 1) * rise))
        )

    factor = lambda s: start_factor + rise * jnp.minimum(s, total_iters) / total_iters  # noqa: E731
    return _factor("LinearLR", lr, factor, advance)


def ExponentialLR(lr: Any, gamma: float) -> Schedule:
    """The rate times `gamma` every step."""
    return _factor("ExponentialLR", lr, lambda s: gamma**s, lambda value, t: value * gamma if t else value)


def PolynomialLR(lr: Any, total_iters: int = 5, power: float = 1.0) -> Schedule:
    """(1 - s / total_iters)^power times the rate, and 0 from step `total_iters` on."""
    _check(total_iters >= 1, f"total_iters {total_iters} must be at least 1")

    def advance(value: float, t: int) -> float:
        if t == 0 or t > total_iters:
            return value
        return value * ((1 - t / total_iters) / (1 - (t - 1) / total_iters)) ** power

    factor = lambda s: (1 - jnp.minimum(s, total_iters) / total_iters) ** power  # noqa: E731
    return _factor("PolynomialLR", lr, factor, advance)


def CosineAnnealingLR(lr: Any, T_max: int, eta_min: float = 0.0) -> Schedule:
    """Half a cosine down to `eta_min` at step `T_max` (Loshchilov and Hutter 2017); after it the rate rises again."""
    _check(T_max >= 1, f"T_max {T_max} must be at least 1")

    def advance(value: float, t: int) -> float:
        if t == 0:
            return value
        if (t - 1 - T_max) % (2 * T_max) == 0:
            return value + (lr - eta_min) * (1 - math.cos(math.pi / T_max)) / 2
        ratio = (1 + math.cos(math.pi * t / T_max)) / (1 + math.cos(math.pi * (t - 1) / T_max))
        return ratio * (value - eta_min) + eta_min

    rate = lambda s: eta_min + (lr - eta_min) * (1 + jnp.cos(math.pi * s / T_max)) / 2  # noqa: E731
    return Schedule("CosineAnnealingLR", lr, rate, advance)


def CosineAnnealingWarmRestarts(lr: Any, T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> Schedule:
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
        return eta_min + (lr - eta_min) * (1 + jnp.cos(math.pi * done)) / 2

    return _absolute("CosineAnnealingWarmRestarts", lr, rate)


def CyclicLR(
    base_lr: float,
    max_lr: float,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[Any], Any] | None = None,
    scale_mode: str = "cycle",
    cycle_momentum: bool = True,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
) -> Schedule:
    """Up from `base_lr` to `max_lr` and down again, in cycles (Smith 2017); the momentum falls while the rate rises.

    The height of a cycle stays, is halved each time ("triangular2"), is gamma^step ("exp_range"), or `scale_fn` of the
    cycle or of the step, whichever `scale_mode` says ("cycle" or "iterations").
    """
    if scale_fn is None and mode not in MODES:
        raise unknown("mode", mode, MODES)
    if scale_mode not in ("cycle", "iterations"):
        raise unknown("scale_mode", scale_mode, ("cycle", "iterations"))
    total = step_size_up + (step_size_up if step_size_down is None else step_size_down)
    _check(min(step_size_up, total - step_size_up) >= 1, "step_size_up and step_size_down must be at least 1")
    turn = step_size_up / total

    def height(s: Scalar) -> Scalar:
        cycle = jnp.floor(1 + s / total)
        x = 1 + s / total - cycle
        scale = jnp.where(x <= turn, x / turn, (x - 1) / (turn - 1))
        if scale_fn is not None:
            return scale * scale_fn(cycle if scale_mode == "cycle" else s)
        factors: dict[str, Any] = {
            "triangular": 1.0,
            "triangular2": 0.5 ** (cycle - 1),
            "exp_range": gamma**s,
        }
        return scale * factors[mode]

    cycled = lambda s: max_momentum - (max_momentum - base_momentum) * height(s)  # noqa: E731
    momentum = _absolute("CyclicLR's momentum", max_momentum, cycled) if cycle_momentum else None
    rate = lambda s: base_lr + (max_lr - base_lr) * height(s)  # noqa: E731
    return replace(_absolute("CyclicLR", base_lr, rate), momentum=momentum)


def OneCycleLR(
    max_lr: float,
    total_steps: int | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    cycle_momentum: bool = True,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up from max_lr / div_factor to max_lr, then down to the initial rate / final_div_factor (Smith and Topin 2018).

    With `three_phase` down to the initial rate in as many steps as up, and then to the final one. Step `total_steps`
    is the last that torch takes; after it the rate is constant. The momentum falls while the rate rises.
    """
    if total_steps is None:
        if epochs is None or steps_per_epoch is None:
            raise UsageError("OneCycleLR needs total_steps, or epochs and steps_per_epoch")
        total_steps = epochs * steps_per_epoch
    initial = max_lr / div_factor
    values = [initial, max_lr, initial] if three_phase else [initial, max_lr]
    rate = _one_cycle([*values, initial / final_div_factor], total_steps, pct_start, anneal_strategy)
    values = [max_momentum, base_momentum, max_momentum] + [max_momentum] * three_phase
    cycled = _one_cycle(values, total_steps, pct_start, anneal_strategy)
    momentum = _absolute("OneCycleLR's momentum", max_momentum, cycled) if cycle_momentum else None
    return replace(_absolute("OneCycleLR", initial, rate), momentum=momentum)


def SequentialLR(schedulers: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after another: the next begins at each milestone, with its step 0."""
    _check(
        len(milestones) == len(schedulers) - 1,
        f"{len(schedulers)} schedules need {len(schedulers) - 1} milestones, not {len(milestones)}",
    )
    _check(list(milestones) == sorted(milestones), f"milestones {list(milestones)} must rise")
    starts = [0, *milestones]
    rates: list[Rate] = []
    for i, schedule in enumerate(schedulers):
        if i and schedule.begun is not None:
            length, previous = starts[i] - starts[i - 1], rates[-1]
            rates.append(_continued(schedule.begun, previous, length - 1))
        else:
            rates.append(schedule.rate)

    def rate(s: Scalar) -> Scalar:
        value = rates[0](s)
        for later, start in zip(rates[1:], milestones, strict=True):
            value = jnp.where(s >= start, later(jnp.maximum(s - start, 0.0)), value)
        return value

    def advance(value: float, t: int) -> float:
        i = bisect.bisect_right(milestones, t)
        if t in milestones and schedulers[i].begun is None:
            value = schedulers[i].lr
        return schedulers[i].advance(value, t - starts[i])

    return Schedule("SequentialLR", schedulers[0].lr, rate, advance)


def ChainedScheduler(schedulers: Sequence[Schedule], *, total_steps: int | None = None) -> Schedule:
    """Schedules of the same learning rate, of which each changes the rate that the one before has left.

    Args:
        total_steps: needed where one of them is no factor of the rate, such as a cosine. torch's recursion is then
            computed once for so many steps, after which the rate is constant.
    """
    _check(len(schedulers) >= 1, "there are no schedules to chain")
    lr = schedulers[0].lr
    if differing := [s.name for s in schedulers if s.lr != lr]:
        raise UsageError(
            f"the schedules of a chain share one learning rate: {differing[0]} has another than {lr}"
        )

    def advance(value: float, t: int) -> float:
        for schedule in schedulers:
            value = schedule.advance(value, t)
        return value

    factors = [s.factor for s in schedulers if s.factor is not None]
    if len(factors) == len(schedulers):
        return _factor("ChainedScheduler", lr, lambda s: math.prod(f(s) for f in factors), advance)
    if total_steps is None:
        name = next(s.name for s in schedulers if s.factor is None)
        raise UsageError(f"a chain with {name} needs total_steps: its rate follows torch's recursion")
    table = [lr]
    for t in range(total_steps + 1):
        table.append(advance(table[-1], t))
    values = np.array(table[1:])
    rate = lambda s: jnp.asarray(values, s.dtype)[jnp.clip(_integer(s), 0, total_steps)]  # noqa: E731
    return Schedule("ChainedScheduler", lr, rate, advance)


# -------------------------------------------------------------------------------------------------- shared


def _factor(name: str, lr: Any, factor: Rate, advance: Callable[[float, int], float]) -> Schedule:
    """A schedule that multiplies whatever rate it begins with."""
    return Schedule(name, lr, lambda s: lr * factor(s), advance, factor=factor)


def _absolute(name: str, lr: Any, rate: Rate) -> Schedule:
    """A schedule that does not look at the rate of the step before."""
    advance = lambda value, t: float(rate(jnp.asarray(t, jnp.result_type(float))))  # noqa: E731
    return Schedule(name, lr, rate, advance)


def _continued(begun: Callable[[Any], Rate], previous: Rate, last: int) -> Rate:
    """The rate of a schedule that goes on from the last value of the previous one."""
    return lambda s: begun(previous(jnp.asarray(last, s.dtype)))(s)


def _integer(step: Any) -> Any:
    """A step as the integer that it is."""
    return jnp.asarray(step).astype(jnp.int32)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UsageError(message)


def _one_cycle(values: Sequence[float], total_steps: int, pct_start: float, anneal_strategy: str) -> Rate:
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

    return rate
