"""Non-finite, exploding and vanishing gradients by path, and gradients checked against differences."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

Flat = Mapping[str, Any]
METHODS = ("central", "complex")
STEPS = {"central": 1e-6, "complex": 1e-30}
# Functions of a complex number that have no complex derivative, as aten names them.
NOT_ANALYTIC = {
    "abs",
    "angle",
    "conj",
    "real",
    "imag",
    "sgn",
    "max",
    "min",
    "amax",
    "amin",
    "maximum",
    "minimum",
}


@dataclass(frozen=True)
class Finding:
    """The problem of one array: `kind` is nan, inf, exploding or vanishing; `value` is the number of nan or
    inf entries, or the root mean square."""

    path: str
    kind: str
    value: float

    def __str__(self) -> str:
        detail = (
            f"{self.value:.0f} entries"
            if self.kind in ("nan", "inf")
            else f"root mean square {self.value:.1e}"
        )
        return f"{self.path}: {self.kind} ({detail})"


class AutogradDebugger:
    """Looks for NaN, Inf, exploding and vanishing gradients.

    Args:
        vanishing: a root mean square below this is too small; a gradient of zeros is.
        exploding: one above this is too large.
    """

    def __init__(self, vanishing: float = 1e-8, exploding: float = 1e3):
        self.vanishing, self.exploding = vanishing, exploding

    def check(self, gradients: Flat) -> list[Finding]:
        """The findings in a flat dictionary of gradients, in its order; at most one for each path."""
        findings = []
        for path, values in statistics(gradients).items():
            nans, infs, size = (float(x) for x in values)
            if nans:
                findings.append(Finding(path, "nan", nans))
            elif infs:
                findings.append(Finding(path, "inf", infs))
            elif size > self.exploding:
                findings.append(Finding(path, "exploding", size))
            elif size < self.vanishing:
                findings.append(Finding(path, "vanishing", size))
        return findings


def statistics(gradients: Flat) -> dict[str, tuple[Any, Any, Any]]:
    """The number of NaN, of Inf, and the root mean square of each array."""
    return {
        k: (g.isnan().sum(), g.isinf().sum(), g.double().square().mean().sqrt()) for k, g in gradients.items()
    }


def verify_gradients(
    function: Callable[[dict[str, Any]], Any],
    point: Flat,
    *,
    method: str = "central",
    step: float | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """The error of a function's gradient, by path: the largest over some entries, relative to the gradient's norm.

    Args:
        function: a flat dictionary -> a scalar; deterministic.
        point: float64 arrays, where the gradient is taken.
        method: "central" differences (f(x + h) - f(x - h)) / 2h, or "complex" Im f(x + ih) / h, which has no
            cancellation and is exact to rounding, where the function is analytic.
        step: h; by default 1e-6 or 1e-30.
        samples: how many entries of each array, drawn with `seed`.

    Raises:
        ValueError: unknown method, an array not in float64, or a function that is not analytic.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known: {', '.join(METHODS)}")
    for path, value in point.items():
        if value.dtype != torch.float64:
            raise ValueError(f"{path} is {value.dtype}: differences are too inexact below float64")
    h = STEPS[method] if step is None else step
    leaves = {k: v.detach().clone().requires_grad_() for k, v in point.items()}
    grads = torch.autograd.grad(function(leaves), list(leaves.values()), materialize_grads=True)
    gradients = {k: g.numpy() for k, g in zip(leaves, grads, strict=True)}
    base = {k: v.detach() for k, v in point.items()}

    def perturbed(path: str, index: tuple[Any, ...], change: complex) -> dict[str, torch.Tensor]:
        value = base[path].to(torch.complex128) if isinstance(change, complex) else base[path].clone()
        value[tuple(index)] += change
        return {**base, path: value}

    rng = np.random.default_rng(seed)
    errors = {}
    with torch.no_grad():
        for path, gradient in gradients.items():
            entries = rng.choice(gradient.size, min(samples, gradient.size), replace=False)
            worst = 0.0
            for index in (np.unravel_index(i, gradient.shape) for i in entries):
                if method == "complex":
                    slope = analytic(function, perturbed(path, index, 1j * h)).imag.item() / h
                else:
                    above, below = (function(perturbed(path, index, change)) for change in (h, -h))
                    slope = (above - below).item() / (2 * h)
                worst = max(worst, abs(slope - gradient[index].item()))
            errors[path] = worst / max(float(np.linalg.norm(gradient)), math.sqrt(np.finfo(float).tiny))
    return errors


def analytic(function: Callable[[dict[str, Any]], Any], point: Flat) -> Any:
    """The function at a complex point.

    Raises:
        ValueError: an operation has no complex derivative, or torch does not have it for complex numbers.
    """
    try:
        with _Analytic():
            value = function(dict(point))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"the complex step does not apply: {error}") from None
    if not value.is_complex():
        raise ValueError("the complex step does not apply: the value does not depend on a complex number")
    return value


class _Analytic(TorchDispatchMode):
    """Rejects operations on complex numbers that have no complex derivative."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in NOT_ANALYTIC and any(torch.is_tensor(a) and a.is_complex() for a in args):
            raise RuntimeError(f"{name} of a complex number has no derivative")
        return func(*args, **(kwargs or {}))
