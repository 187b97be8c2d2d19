"""A function of torch.nn.functional and ours of the same name, on the same arrays: outputs and gradients."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from comparison import arrays, error
from jaxarch.nn import functional
from jaxarch.parity.compare import BOUND, is_float, leaves

Arguments = tuple[Any, ...]
SMALL = 1e-3  # a norm below it counts as this: what is 0 in exact arithmetic is rounding


def last(value: Any) -> Any:
    """torch's (B, C, ...) with the channels last."""
    return jnp.moveaxis(value, 1, -1)


def in_torch(
    name: str, args: Arguments, kwargs: Mapping[str, Any], constant: tuple[str, ...] = ()
) -> tuple[dict, dict, dict]:
    """Outputs, cotangents and gradients by the path of an argument, but for the constant ones."""
    given = jax.tree.map(_tensor, (args, dict(kwargs)))
    inputs = {
        k: v.requires_grad_()
        for k, v in leaves(given).items()
        if k not in constant and isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = leaves(getattr(torch.nn.functional, name)(*given[0], **given[1]))
    rng = np.random.default_rng(1)
    cotangents = {k: rng.normal(size=v.shape) for k, v in outputs.items() if is_float(v)}
    roots = {k: v for k, v in outputs.items() if k in cotangents and v.requires_grad}
    grads: Any = [None] * len(inputs)
    if roots:
        seeds = [torch.from_numpy(np.asarray(cotangents[k])) for k in roots]
        grads = torch.autograd.grad(list(roots.values()), list(inputs.values()), seeds, allow_unused=True)
    gradients = {
        k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(inputs.items(), grads, strict=True)
    }
    return arrays(outputs), cotangents, arrays(gradients)


def in_jax(
    name: str,
    args: Arguments,
    kwargs: Mapping[str, Any],
    cotangents: Mapping[str, np.ndarray],
    moved: tuple[str, ...] = (),
) -> tuple[dict, dict]:
    """Our outputs and gradients in torch's axes; the arrays that `moved` names have their channels last here."""
    given = jax.tree.map(lambda v: jnp.asarray(v) if isinstance(v, np.ndarray) else v, (args, dict(kwargs)))
    paths = list(leaves(given))  # as jax.tree.flatten, it leaves None out
    values: list[Any]
    tree: Any
    values, tree = jax.tree.flatten(given)
    values = [last(v) if k in moved else v for k, v in zip(paths, values, strict=True)]
    floats = [i for i, v in enumerate(values) if isinstance(v, jax.Array) and is_float(v)]
    outputs_moved = bool(moved) and "-" not in moved

    def forward(changed: list[Any]) -> Any:
        replaced = dict(zip(floats, changed, strict=True))
        a, k = tree.unflatten([replaced.get(i, v) for i, v in enumerate(values)])
        outputs = leaves(getattr(functional, name)(*a, **k))
        if outputs_moved:
            outputs = {k: jnp.moveaxis(v, -1, 1) for k, v in outputs.items()}
        return {k: outputs[k] for k in cotangents}, outputs

    _, pullback, outputs = jax.vjp(forward, [values[i] for i in floats], has_aux=True)
    (grads,) = pullback({k: jnp.asarray(v) for k, v in cotangents.items()})
    gradients = {paths[i]: g for i, g in zip(floats, grads, strict=True)}
    return arrays(outputs), {
        k: np.moveaxis(v, -1, 1) if k in moved else v for k, v in arrays(gradients).items()
    }


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def assert_same(
    name: str,
    *args: Any,
    constant: tuple[str, ...] = (),
    moved: tuple[str, ...] = (),
    **kwargs: Any,
) -> None:
    """Outputs and gradients are the same; both may be NaN or infinite.

    `moved` names the arguments whose channels move, and the outputs move with them unless it has "-", too; `constant`
    those of which torch has no derivative.
    """
    outputs, cotangents, gradients = in_torch(name, args, kwargs, constant)
    actual_outputs, actual_gradients = in_jax(name, args, kwargs, cotangents, moved)
    actual_gradients = {k: v for k, v in actual_gradients.items() if k in gradients}
    for actual, expected in ((actual_outputs, outputs), (actual_gradients, gradients)):
        assert actual.keys() == expected.keys()
        actual, expected = _without_equal_infinities(actual, expected)
        assert not expected or error(actual, expected, SMALL) < BOUND, (name, kwargs, actual, expected)


def _without_equal_infinities(actual: dict, expected: dict) -> tuple[dict, dict]:
    """Both with zeros where both are NaN or the same infinity."""
    same = {
        k: (np.isnan(actual[k]) & np.isnan(v)) | (np.isinf(v) & (actual[k] == v)) for k, v in expected.items()
    }
    first, second = ({k: np.where(same[k], 0, v) for k, v in part.items()} for part in (actual, expected))
    return first, second
