"""The line search of torch.optim.LBFGS: a step that satisfies the strong Wolfe conditions.

Nocedal and Wright 2006, algorithms 3.5 and 3.6, with the cubic interpolation and the safeguards of minFunc, as
torch's `_strong_wolfe` has them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

C1, C2 = 1e-4, 0.9
# The direction's flat point -> (value, gradient).
Objective = Callable[[Float[Array, "n"]], tuple[Float[Array, ""], Float[Array, "n"]]]
RUNNING, BRACKETED, DONE = 0, 1, 2


class Point(NamedTuple):
    """A point on the line: the step, the value, the gradient and its slope along the direction."""

    t: Float[Array, ""]
    f: Float[Array, ""]
    g: Float[Array, "n"]
    slope: Float[Array, ""]


class Bracketing(NamedTuple):
    """The state of the first phase: the last two points, the iterations and evaluations, and how it ended."""

    before: Point
    now: Point
    iterations: Int[Array, ""]
    status: Int[Array, ""]


class Zooming(NamedTuple):
    """The state of the second phase: the ends of the bracket, and which is the lower."""

    ends: tuple[Point, Point]
    first_is_low: Bool[Array, ""]
    iterations: Int[Array, ""]
    done: Bool[Array, ""]
    insufficient: Bool[Array, ""]


def strong_wolfe(
    objective: Objective,
    x: Float[Array, "n"],
    t: Float[Array, ""],
    direction: Float[Array, "n"],
    start: Point,
    max_ls: Int[Array, ""],
    tolerance_change: float = 1e-9,
) -> tuple[Point, Int[Array, ""]]:
    """(the point found along the direction, the number of evaluations).

    Args:
        t: the first step to try.
        start: the point of step 0.
        max_ls: the most iterations.
        tolerance_change: the least width of the bracket, in the largest element of the step.
    """

    def at(t: Float[Array, ""]) -> Point:
        value, gradient = objective(x + t * direction)
        return Point(t, value, gradient, gradient @ direction)

    def bracket(state: Bracketing) -> Bracketing:
        before, now, i, _ = state
        too_high = (now.f > start.f + C1 * now.t * start.slope) | ((i > 1) & (now.f >= before.f))
        satisfied = jnp.abs(now.slope) <= -C2 * start.slope
        ended = too_high | satisfied | (now.slope >= 0)
        status = jnp.where(too_high, BRACKETED, jnp.where(satisfied, DONE, jnp.where(ended, BRACKETED, 0)))

        def extend() -> Bracketing:
            bounds = now.t + 0.01 * (now.t - before.t), now.t * 10
            return Bracketing(now, at(_cubic(before, now, bounds)), i + 1, status.astype(jnp.int32))

        return jax.lax.cond(ended, lambda: state._replace(status=status.astype(jnp.int32)), extend)

    zero = jnp.zeros((), jnp.int32)
    first = Bracketing(start, at(t), zero, zero)
    found = jax.lax.while_loop(lambda s: (s.status == RUNNING) & (s.iterations < max_ls), bracket, first)
    now = found.now
    # Without a bracket after the last iteration it is from step 0 to the last one.
    before = _where(found.status == RUNNING, start, _where(found.status == DONE, now, found.before))
    zooming = Zooming(
        (before, now), before.f <= now.f, found.iterations, found.status == DONE, jnp.zeros((), bool)
    )
    d_norm = jnp.abs(direction).max()

    def open_bracket(state: Zooming) -> Bool[Array, ""]:
        width = jnp.abs(state.ends[1].t - state.ends[0].t) * d_norm
        return ~state.done & (state.iterations < max_ls) & ~(width < tolerance_change)

    def zoom(state: Zooming) -> Zooming:
        t, insufficient = _safeguarded(state)
        new = at(t)
        return _narrowed(state, new, start)._replace(
            iterations=state.iterations + 1, insufficient=insufficient
        )

    zoomed = jax.lax.while_loop(open_bracket, zoom, zooming)
    return _where(zoomed.first_is_low, *zoomed.ends), zoomed.iterations + 1


def _narrowed(state: Zooming, new: Point, start: Point) -> Zooming:
    """The bracket with a new point in place of its higher or its lower end."""
    low = _where(state.first_is_low, *state.ends)
    high = _where(state.first_is_low, *reversed(state.ends))
    no_decrease = (new.f > start.f + C1 * new.t * start.slope) | (new.f >= low.f)
    satisfied = ~no_decrease & (jnp.abs(new.slope) <= -C2 * start.slope)
    turned = ~no_decrease & ~satisfied & (new.slope * (high.t - low.t) >= 0)
    high = _where(no_decrease, new, _where(turned, low, high))
    low = _where(no_decrease, low, new)
    first, second = _where(state.first_is_low, low, high), _where(state.first_is_low, high, low)
    return state._replace(
        ends=(first, second),
        first_is_low=jnp.where(no_decrease, first.f <= second.f, state.first_is_low),
        done=satisfied,
    )


def _safeguarded(state: Zooming) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """(the next step within the bracket, whether the progress is insufficient)."""
    first, second = state.ends
    t = _cubic(first, second, None)
    low, high = jnp.minimum(first.t, second.t), jnp.maximum(first.t, second.t)
    margin = 0.1 * (high - low)
    close = jnp.minimum(high - t, t - low) < margin
    move = close & (state.insufficient | (t >= high) | (t <= low))
    moved = jnp.where(jnp.abs(t - high) < jnp.abs(t - low), high - margin, low + margin)
    return jnp.where(move, moved, t), close & ~move


def _cubic(a: Point, b: Point, bounds: tuple[Any, Any] | None) -> Float[Array, ""]:
    """The minimum of the cubic through two points with their slopes, within bounds; their middle if there is none."""
    rising = a.t <= b.t
    low, high = bounds or (jnp.minimum(a.t, b.t), jnp.maximum(a.t, b.t))
    d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    d2 = jnp.sqrt(jnp.maximum(square, 0))
    up = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    down = a.t - (a.t - b.t) * ((a.slope + d2 - d1) / (a.slope - b.slope + 2 * d2))
    inside = jnp.minimum(jnp.maximum(jnp.where(rising, up, down), low), high)
    return jnp.where(square >= 0, inside, (low + high) / 2)


def _where(condition: Bool[Array, ""], a: Point, b: Point) -> Point:
    return Point(*(jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)))
