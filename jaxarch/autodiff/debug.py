"""Non-finite, exploding and vanishing gradients by path, and gradients checked against differences."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxarch.errors import UsageError, unknown
from jaxarch.nn import accumulation_dtype

Flat = Mapping[str, Any]
METHODS = ("central", "complex")
STEPS = {"central": 1e-6, "complex": 1e-30}
# Functions of a complex number that have no complex derivative, as jax.lax names them.
NOT_ANALYTIC = {
    "abs",
    "atan2",
    "conj",
    "real",
    "imag",
    "sign",
    "max",
    "min",
    "reduce_max",
    "reduce_min",
    "lt",
    "gt",
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
        """The findings in a flat dictionary of gradients, in its order; at most one for each path.

        The arrays stay on their devices; a few numbers of each come to the host.
        """
        findings = []
        on_host = jax.device_get(_statistics(dict(gradients)))
        for path in gradients:
            nans, infs, size = (float(x) for x in on_host[path])
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
    """The number of NaN, of Inf, and the root mean square of each array; for use inside a jitted step, too."""
    upcast = {k: g.astype(accumulation_dtype(g.dtype)) for k, g in gradients.items()}
    return {k: (jnp.isnan(g).sum(), jnp.isinf(g).sum(), jnp.sqrt((g**2).mean())) for k, g in upcast.items()}


_statistics = jax.jit(statistics)


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
        UsageError: unknown method, an array not in float64, or a function that is not analytic.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    for path, value in point.items():
        if value.dtype != jnp.float64:
            raise UsageError(f"{path} is {value.dtype}: differences are too inexact below float64")
    h = STEPS[method] if step is None else step
    base = {k: np.asarray(v) for k, v in point.items()}
    gradients = {k: np.asarray(g) for k, g in jax.jit(jax.grad(function))(dict(point)).items()}
    value_at = jax.jit(function)

    def perturbed(path: str, index: tuple[Any, ...], change: complex) -> dict[str, np.ndarray]:
        value = base[path].astype(complex if isinstance(change, complex) else float)
        value[index] += change
        return {**base, path: value}

    rng = np.random.default_rng(seed)
    errors = {}
    for path, gradient in gradients.items():
        entries = rng.choice(gradient.size, min(samples, gradient.size), replace=False)
        worst = 0.0
        if method == "complex":
            analytic(function, perturbed(path, (0,) * gradient.ndim, 0j))
        for index in (np.unravel_index(i, gradient.shape) for i in entries):
            if method == "complex":
                with jax.numpy_dtype_promotion("standard"):  # the other paths stay real
                    slope = value_at(perturbed(path, index, 1j * h)).imag.item() / h
            else:
                above, below = (value_at(perturbed(path, index, change)) for change in (h, -h))
                slope = (above - below).item() / (2 * h)
            worst = max(worst, abs(slope - gradient[index].item()))
        errors[path] = worst / max(float(np.linalg.norm(gradient)), math.sqrt(np.finfo(float).tiny))
    return errors


def analytic(function: Callable[[dict[str, Any]], Any], point: Flat) -> None:
    """Check that the complex step applies to a function at a complex point.

    Raises:
        UsageError: an operation has no complex derivative, or JAX does not have it for complex numbers.
    """
    try:
        with jax.numpy_dtype_promotion("standard"):
            traced = jax.make_jaxpr(function)(dict(point))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the complex step does not apply: {str(error).splitlines()[0]}") from None
    if not jnp.issubdtype(traced.out_avals[0].dtype, jnp.complexfloating):
        raise UsageError("the complex step does not apply: the value does not depend on a complex number")
    for name, operands in operations(traced.jaxpr):
        if name in NOT_ANALYTIC and any(jnp.issubdtype(d, jnp.complexfloating) for d in operands):
            raise UsageError(f"the complex step does not apply: {name} of a complex number has no derivative")


def operations(jaxpr: Any) -> list[tuple[str, list[Any]]]:
    """The primitives of a jaxpr and of those inside it, with their operands' dtypes."""
    result = []
    for equation in jaxpr.eqns:
        result.append((equation.primitive.name, [v.aval.dtype for v in equation.invars]))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                result += operations(getattr(inner, "jaxpr", inner))
    return result


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns")
