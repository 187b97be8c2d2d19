"""The first module whose output, or the gradient of whose output, differs between the frameworks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxarch.parity.compare import BOUND, relative
from jaxarch.parity.sides import Recorded

if TYPE_CHECKING:
    import torch


def first_divergence(module: "torch.nn.Module", expected: Recorded, actual: Recorded) -> str:
    """Name the first module that diverges forward and, if none does, backward; "" if none does at all.

    Modules are compared by path where both frameworks have one whose output is an array, or a tuple that starts
    with one, in the order in which torch's calls end. A module that is called more than once is compared on its
    first call. Modules inside a checkpointed (rematerialised) block or a scanned step are not recorded; the block
    or the module that scans is.

    Args:
        module: torch's, for the classes of its parts.
        expected, actual: what torch's and JAX's side recorded.
    """
    classes = {name: type(part).__name__ for name, part in module.named_modules()}
    shared = [name for name in expected.outputs if name in actual.outputs]
    for name in shared:
        error = _error(expected.outputs[name], actual.outputs[name])
        if not error <= BOUND:
            return f"{_label(name, classes)}: forward error {error:.1e}"
    later = ""
    for name in reversed(shared):
        if name not in expected.gradients or name not in actual.gradients:
            continue
        error = _error(expected.gradients[name], actual.gradients[name])
        if not error <= BOUND:
            # The gradient of this output is wrong, so it went wrong in what came after it.
            return f"{_label(later or name, classes)}: backward error {error:.1e}"
        later = name
    return ""


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The error in whichever axis order fits best; only a report depends on it, never a verdict."""
    orders = [actual, *(np.moveaxis(actual, -1, axis) for axis in range(1, actual.ndim - 1))]
    errors = [relative(expected, x) for x in orders if x.shape == expected.shape]
    return min(errors, default=float("inf"))


def _label(name: str, classes: Mapping[str, str]) -> str:
    return f"{name or 'the model itself'} ({classes.get(name, '?')})"
