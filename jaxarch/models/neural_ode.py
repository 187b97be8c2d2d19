"""A neural ordinary differential equation: Chen et al. 2018, arXiv:1806.07366."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import UsageError, require, unknown

Time = Float[Array, ""]
State = Float[Array, "b d"]
Field = Callable[[Time, State], State]


def euler(f: Field, t: Time, h: Time, y: State) -> State:
    """One step of order 1."""
    return y + h * f(t, y)


def midpoint(f: Field, t: Time, h: Time, y: State) -> State:
    """One step of order 2."""
    return y + h * f(t + h / 2, y + h / 2 * f(t, y))


def rk4(f: Field, t: Time, h: Time, y: State) -> State:
    """One step of order 4 (Kutta 1901)."""
    k1 = f(t, y)
    k2 = f(t + h / 2, y + h / 2 * k1)
    k3 = f(t + h / 2, y + h / 2 * k2)
    k4 = f(t + h, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


STEPS: dict[str, Callable[[Field, Time, Time, State], State]] = {
    "euler": euler,
    "midpoint": midpoint,
    "rk4": rk4,
}
METHODS = (*STEPS, "dopri5")


class VectorField(nn.Module):
    """time (), y (B, dim) -> dy/dt (B, dim): an MLP of y and the time."""

    def __init__(self, dim: int, hidden_dims: Sequence[int], activation: str, *, rngs: nnx.Rngs):
        layers: list[nn.Module] = []
        width = dim + 1
        for hidden_dim in hidden_dims:
            layers += [nn.Linear(width, hidden_dim, rngs=rngs), nn.Activation(activation)]
            width = hidden_dim
        self.network = nn.Sequential(*layers, nn.Linear(width, dim, rngs=rngs))

    def __call__(self, t: Float[Array, ""], y: Float[Array, "b d"]) -> Float[Array, "b d"]:
        time = jnp.broadcast_to(t.astype(y.dtype), (len(y), 1))
        return self.network(jnp.concatenate([y, time], -1))


class NeuralODE(nn.Module):
    """x (B, dim) at times[0], times (T,) at any spacing -> (B, T, dim), the solution at each of the times.

    euler, midpoint and rk4 take `steps` equal steps from each time to the next, forward or backward.
    dopri5 (Dormand and Prince 1980) chooses its own to meet `rtol` and `atol`, with one step size for the
    whole batch; times must increase; it needs the package diffrax. It differentiates through its steps
    or, with `adjoint`, by the adjoint equation, whose memory does not grow with the steps.

    Raises:
        UsageError: an unknown method, adjoint without dopri5 or steps with it, dopri5 without diffrax.
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64,),
        method: str = "rk4",
        steps: int = 1,
        activation: str = "tanh",
        rtol: float = 1e-6,
        atol: float = 1e-6,
        adjoint: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if adjoint and method != "dopri5":
            raise UsageError(f"adjoint needs method 'dopri5', not {method!r}")
        if steps < 1 or (steps > 1 and method == "dopri5"):
            raise UsageError(f"steps {steps} must be positive, and 1 for dopri5, which chooses its own")
        self.method, self.steps = method, steps
        self.rtol, self.atol, self.adjoint = rtol, atol, adjoint
        self.field = VectorField(dim, hidden_dims, activation, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"], times: Float[Array, " t"]) -> Float[Array, "b t d"]:
        solve = self._adaptive if self.method == "dopri5" else self._fixed
        return solve(x, times).swapaxes(0, 1)

    def _fixed(self, x: Float[Array, "b d"], times: Float[Array, " t"]) -> Float[Array, "t b d"]:
        advance = STEPS[self.method]

        def between(x: State, ends: tuple[Time, Time]) -> tuple[State, State]:
            start, end = ends
            h = (end - start) / self.steps
            substeps = jnp.arange(self.steps, dtype=times.dtype)
            x, _ = lax.scan(lambda y, i: (advance(self.field, start + i * h, h, y), None), x, substeps)
            return x, x

        _, solutions = lax.scan(between, x, (times[:-1], times[1:]))
        return jnp.concatenate([x[None], solutions])

    def _adaptive(self, x: Float[Array, "b d"], times: Float[Array, " t"]) -> Float[Array, "t b d"]:
        diffrax = require("diffrax", "ode", "method 'dopri5'")
        # The weights are an argument of the equation: the adjoint integrates their gradient too.
        graph, weights = nnx.split(self.field)

        def slope(t: Any, y: Any, weights: Any) -> State:
            return nnx.merge(graph, weights)(t, y)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Dopri5(),
            times[0],
            times[-1],
            None,
            x,
            weights,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
            adjoint=diffrax.BacksolveAdjoint() if self.adjoint else diffrax.RecursiveCheckpointAdjoint(),
        )
        return solution.ys
