"""Relative errors between the arrays of two runs, and the one bound they must stay below.

In float64 the two frameworks differ by rounding alone, about 1e-16 of a tensor's norm for each operation on
the way. 1e-10 leaves room for any depth that is practical and none for a wrong layer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

BOUND = 1e-10
# A gradient this small beside the model's largest is rounding: some 10^4 operations of 1e-16 each.
STRUCTURAL_ZERO = 1e-12


@dataclass
class Errors:
    """Relative errors by tensor; infinite where a tensor is missing, misshapen or not finite."""

    by_name: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest error: the smallest bound that would pass."""
        return max(self.by_name.values(), default=0.0)

    def failed(self) -> list[str]:
        """The tensors beyond the bound, worst first."""
        failed = [k for k, v in self.by_name.items() if not v <= BOUND]
        return sorted(failed, key=lambda k: -self.by_name[k])

    def add(self, prefix: str, other: "Errors") -> None:
        """Add other errors, their names under a prefix."""
        self.by_name |= {f"{prefix}{k}": v for k, v in other.by_name.items()}
        self.reasons |= {f"{prefix}{k}": v for k, v in other.reasons.items()}


def compare(
    reference: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    *,
    zeros: Iterable[str] = (),
    scale: float = 0.0,
) -> Errors:
    """The error of each tensor: the norm of the difference over the norm of the reference.

    Tensors named in `zeros` are zero in exact arithmetic and are measured against `scale`.
    """
    errors, zeros = Errors(), set(zeros)
    for name in sorted({*reference, *actual}):
        if name not in reference or name not in actual:
            errors.by_name[name] = math.inf
            errors.reasons[name] = f"missing in {'torch' if name not in reference else 'jax'}"
            continue
        a, b = reference[name], actual[name]
        if a.shape != b.shape:
            errors.by_name[name] = math.inf
            errors.reasons[name] = f"shape {a.shape} in torch, {b.shape} in jax"
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            frameworks = " and ".join(n for n, x in (("torch", a), ("jax", b)) if not np.isfinite(x).all())
            errors.by_name[name] = math.inf
            errors.reasons[name] = f"not finite in {frameworks}"
        else:
            errors.by_name[name] = relative(a, b, scale if name in zeros else 0.0)
    return errors


def relative(reference: np.ndarray, actual: np.ndarray, scale: float = 0.0) -> float:
    """||reference - actual|| / max(||reference||, scale); 0 if both are exactly equal."""
    difference = float(np.linalg.norm(np.asarray(reference, float) - np.asarray(actual, float)))
    if difference == 0:
        return 0.0
    size = max(float(np.linalg.norm(np.asarray(reference, float))), scale)
    return difference / size if size > 0 else math.inf


def largest(tensors: Mapping[str, np.ndarray]) -> float:
    """The largest norm among tensors."""
    norms = [float(np.linalg.norm(v)) for v in tensors.values()]
    return max((n for n in norms if math.isfinite(n)), default=0.0)


def structural_zeros(reference: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> set[str]:
    """Names whose gradient is rounding in both frameworks: not exactly zero, but tiny beside the largest."""
    threshold = STRUCTURAL_ZERO * largest(reference)
    names = set()
    for name in reference.keys() & actual.keys():
        norms = float(np.linalg.norm(reference[name])), float(np.linalg.norm(actual[name]))
        if 0 < max(norms) <= threshold:
            names.add(name)
    return names


def leaves(output: Any, path: str = "") -> dict[str, Any]:
    """The arrays of an output (an array, or tuples and mappings of them) by path; None is left out."""
    if output is None:
        return {}
    if isinstance(output, Mapping):
        items: Any = output.items()
    elif isinstance(output, tuple | list):
        items = enumerate(output)
    else:
        return {path: output}
    return {k: v for name, value in items for k, v in leaves(value, f"{path}.{name}".lstrip(".")).items()}


def is_float(value: Any) -> bool:
    """Whether an array or tensor, numpy's, JAX's or torch's, is floating."""
    return "float" in str(value.dtype)
