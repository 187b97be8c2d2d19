"""What gradients, updates and activations look like while a model trains."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

Flat = Mapping[str, Any]
Measures = dict[str, dict[str, Any]]
WHOLE = ""  # the path of the model itself: norms over all parameters
TINY = 1e-12  # a weight of norm zero gives a large ratio, not an infinite one


class AutogradMonitor:
    """Per path: norms of gradient, update and weight, their ratio, dead rows, zeros, histograms.

    The measures are a dictionary from measure to path to tensor; the path "" is the whole model:

    - `grad_norm`, `update_norm`, `weight_norm`: 2-norms; `ratio`: update over weight.
    - `dead_rows`: of a weight of two or more dimensions, the fraction of output units without any gradient.
    - `zero_activations`: of each module's output, the fraction that is exactly zero, from `watch`.
    - `histogram`: how many gradient entries have log10 |g| in each of `bins` equal parts of [`low`, `high`);
      what lies outside is in the first or last. Left out with `bins` 0.

    Args:
        model: gives the paths.
        activations: glob of the module paths whose output is watched; "" for none.
        every: zeros and histograms, which read every entry again, are measured at each `every`-th step and
            are -1 at the others. The step is an argument of `watch` and `measure`; without it they are
            measured.
    """

    def __init__(
        self,
        model: Module,
        *,
        activations: str = "*",
        every: int = 10,
        bins: int = 0,
        low: float = -12.0,
        high: float = 4.0,
    ):
        self.units = {name: 0 for name, _ in model.named_parameters()}
        self.activations, self.every = activations, every
        self.edges = [float(e) for e in 10 ** np.linspace(low, high, bins + 1)[1:-1]] if bins else None

    @contextlib.contextmanager
    def watch(self, model: Module, step: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Fills the dictionary with each module's fraction of zero outputs, the mean over its calls."""
        zeros: dict[str, Tensor] = {}
        calls: dict[str, int] = {}

        def record(path: str) -> Callable[[Module, Any, Any], None]:
            def hook(module: Module, arguments: Any, output: Any) -> None:
                if not is_float(output) or not fnmatch.fnmatchcase(path, self.activations):
                    return
                value, n = self._due(step, (output.detach() == 0).double().mean()), calls.get(path, 0)
                zeros[path] = (zeros[path] * n + value) / (n + 1) if n else value
                calls[path] = n + 1

            return hook

        handles = [m.register_forward_hook(record(path)) for path, m in model.named_modules()]
        try:
            yield zeros
        finally:
            for handle in handles:
                handle.remove()

    def measure(self, params: Flat, gradients: Flat, updates: Flat, step: int | None = None) -> Measures:
        """The measures of one step except `zero_activations`; all three are by path, `params` before the step."""
        grad_norm, update_norm, weight_norm = (norms(x) for x in (gradients, updates, params))
        measures: Measures = {
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "weight_norm": weight_norm,
            "ratio": {k: u / weight_norm[k].clamp(min=TINY) for k, u in update_norm.items()},
            "dead_rows": {k: dead_rows(g, self.units[k]) for k, g in gradients.items() if g.ndim > 1},
        }
        if (edges := self.edges) is not None:
            counts = {k: histogram(g, edges) for k, g in gradients.items()}
            measures["histogram"] = {k: self._due(step, v) for k, v in counts.items()}
        return measures

    def _due(self, step: int | None, value: Tensor) -> Tensor:
        """The value at each `every`-th step, -1 at the others."""
        return value if step is None or step % self.every == 0 else torch.full_like(value, -1)

    def step(self, model: Module, optimizer: torch.optim.Optimizer, step: int | None = None) -> Measures:
        """Take the optimizer's step and measure it; updates are the change of the parameters."""
        named = dict(model.named_parameters())
        params = {k: p.detach().clone() for k, p in named.items()}
        gradients = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in named.items()}
        optimizer.step()
        updates = {k: p.detach() - params[k] for k, p in named.items()}
        return self.measure(params, gradients, updates, step)

    def table(self, measures: Measures, measure: str = "grad_norm") -> str:
        """The measures of one step as text, a line for each path, the largest `measure` first."""
        columns = [m for m in ("grad_norm", "update_norm", "ratio", "dead_rows") if m in measures]
        paths = sorted(measures[measure], key=lambda k: -float(measures[measure][k]))
        width = max(len(p or "all") for p in paths)
        lines = [f"{'path':{width}}" + "".join(f"{c:>13}" for c in columns)]
        for path in paths:
            cells = [
                f"{float(measures[c][path]):13.3e}" if path in measures[c] else " " * 13 for c in columns
            ]
            lines.append(f"{path or 'all':{width}}" + "".join(cells))
        return "\n".join(line.rstrip() for line in lines)


def is_float(output: Any) -> bool:
    """Whether a module's output is one tensor of floats."""
    return torch.is_tensor(output) and output.is_floating_point()


def norms(values: Flat) -> dict[str, Tensor]:
    """The 2-norm of each tensor, and under "" that of all of them."""
    squares = {
        k: (v.double() if v.dtype == torch.float64 else v.float()).square().sum() for k, v in values.items()
    }
    return {
        WHOLE: torch.stack(list(squares.values())).sum().sqrt(),
        **{k: v.sqrt() for k, v in squares.items()},
    }


def dead_rows(gradient: Tensor, axis: int) -> Tensor:
    """The fraction of slices along `axis` that are zero throughout."""
    return (gradient.movedim(axis, 0).flatten(1) == 0).all(1).double().mean()


def histogram(values: Tensor, edges: list[float]) -> Tensor:
    """How many absolute values lie between neighbouring edges, below the first and above the last."""
    return torch.bincount(
        torch.bucketize(values.abs().flatten(), torch.tensor(edges, dtype=values.dtype), right=True),
        minlength=len(edges) + 1,
    )
