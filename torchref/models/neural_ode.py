"""A neural ordinary differential equation: Chen et al. 2018, arXiv:1806.07366."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchref import nn

Field = Callable[[Tensor, Tensor], Tensor]


def euler(f: Field, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """One step of order 1."""
    return y + h * f(t, y)


def midpoint(f: Field, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """One step of order 2."""
    return y + h * f(t + h / 2, y + h / 2 * f(t, y))


def rk4(f: Field, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """One step of order 4 (Kutta 1901)."""
    k1 = f(t, y)
    k2 = f(t + h / 2, y + h / 2 * k1)
    k3 = f(t + h / 2, y + h / 2 * k2)
    k4 = f(t + h, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


STEPS: dict[str, Callable[[Field, Tensor, Tensor, Tensor], Tensor]] = {
    "euler": euler,
    "midpoint": midpoint,
    "rk4": rk4,
}
METHODS = (*STEPS, "dopri5")


class VectorField(nn.Module):
    """time (), y (B, dim) -> dy/dt (B, dim): an MLP of y and the time."""

    def __init__(self, dim: int, hidden_dims: Sequence[int], activation: str):
        super().__init__()
        layers: list[nn.Module] = []
        width = dim + 1
        for hidden_dim in hidden_dims:
            layers += [nn.Linear(width, hidden_dim), nn.Activation(activation)]
            width = hidden_dim
        self.network = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        time = t.to(y.dtype).expand(len(y), 1)
        return self.network(torch.cat([y, time], -1))


class NeuralODE(nn.Module):
    """x (B, dim) at times[0], times (T,) at any spacing -> (B, T, dim), the solution at each of the times.

    euler, midpoint and rk4 take `steps` equal steps from each time to the next, forward or backward.
    dopri5 (Dormand and Prince 1980) chooses its own to meet `rtol` and `atol`, with one step size for the
    whole batch; times must increase; it needs the package torchdiffeq. It differentiates through its steps
    or, with `adjoint`, by the adjoint equation, whose memory does not grow with the steps. An unknown
    method, adjoint without dopri5 or steps with it are a ValueError.
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
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: known: {', '.join(METHODS)}")
        if adjoint and method != "dopri5":
            raise ValueError(f"adjoint needs method 'dopri5', not {method!r}")
        if steps < 1 or (steps > 1 and method == "dopri5"):
            raise ValueError(f"steps {steps} must be positive, and 1 for dopri5, which chooses its own")
        self.method, self.steps = method, steps
        self.rtol, self.atol, self.adjoint = rtol, atol, adjoint
        self.field = VectorField(dim, hidden_dims, activation)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        solve = self._adaptive if self.method == "dopri5" else self._fixed
        return solve(x, times).transpose(0, 1)

    def _fixed(self, x: Tensor, times: Tensor) -> Tensor:
        advance, solutions = STEPS[self.method], [x]
        for start, end in itertools.pairwise(times):
            h = (end - start) / self.steps
            for i in range(self.steps):
                x = advance(self.field, start + i * h, h, x)
            solutions.append(x)
        return torch.stack(solutions)

    def _adaptive(self, x: Tensor, times: Tensor) -> Tensor:
        try:
            import torchdiffeq
        except ImportError:
            raise ImportError("method 'dopri5' needs torchdiffeq: pip install 'jaxarch[ode]'") from None
        odeint = torchdiffeq.odeint_adjoint if self.adjoint else torchdiffeq.odeint
        return odeint(self.field, x, times, rtol=self.rtol, atol=self.atol, method="dopri5")
