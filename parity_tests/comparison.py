"""Comparisons that `jaxarch.parity.check` cannot make: of functions, of calls with a state, of a third library.

Errors and bound are the harness's. A call is a function of a module and named inputs; a module of None is that of a
function without parameters.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxarch import state
from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.parity.compare import (
    BOUND,
    Arrays,
    compare,
    is_float,
    largest,
    leaves,
    relative,
    structural_zeros,
)

Call = Callable[..., Any]
Inputs = Mapping[str, Any]


class Vjp(NamedTuple):
    """Outputs, and their vector-Jacobian products with parameters (in torch's keys and layouts) and inputs."""

    outputs: Arrays
    parameters: Arrays
    inputs: Arrays


def arrays(output: Any) -> Arrays:
    """The arrays of an output of torch, JAX or numpy by path, as numpy."""
    return {k: as_numpy(v) for k, v in leaves(output).items()}


def error(actual: Any, expected: Any, scale: float = 0.0) -> float:
    """The largest relative error among the arrays of two outputs, which must have the same names and shapes.

    A norm below `scale` counts as `scale`.
    """
    a, b = arrays(actual), arrays(expected)
    assert a.keys() == b.keys()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    return float(np.max([relative(b[k], a[k], scale) for k in b]))  # NaN if any is


def assert_close(actual: Any, expected: Any, bound: float = BOUND, scale: float = 0.0) -> None:
    """Every array of an output is within the bound of the one expected."""
    largest_error = error(actual, expected, scale)
    assert largest_error < bound, f"{largest_error:.1e}"


def called(module: Any, **inputs: Any) -> Any:
    """The plain call of a module."""
    return module(**inputs)


class TorchCall(torch.nn.Module):
    """A module under the key `module`, and the call that is compared."""

    def __init__(self, module: torch.nn.Module, call: Call = called):
        super().__init__()
        self.module, self.call = module, call

    def forward(self, **inputs: Any) -> Any:
        return self.call(self.module, **inputs)


class JaxCall(nnx.Module):
    """A module under the key `module`, and the call that is compared."""

    def __init__(self, module: nnx.Module, call: Call = called):
        self.module, self.call = module, call

    def __call__(self, **inputs: Any) -> Any:
        return self.call(self.module, **inputs)


def compiled(model: nnx.Module, call: Call = called) -> Call:
    """A model's call in one compilation, which is faster than one for each operation."""
    graph, params, rest = state.split(model)
    run = jax.jit(lambda params, inputs: call(state.merge(graph, params, rest), **inputs))
    return lambda **inputs: run(params, jax.tree.map(jnp.asarray, inputs))


def random_cotangents(outputs: Arrays) -> Arrays:
    """Random cotangents of the floating outputs, the same for the same shapes."""
    rng = np.random.default_rng(1)
    return {k: rng.normal(size=v.shape) for k, v in outputs.items() if is_float(v)}


def torch_vjp(
    module: torch.nn.Module | None,
    inputs: Inputs,
    cotangents: Callable[[Arrays], Arrays] = random_cotangents,
    call: Call = called,
) -> tuple[Vjp, Arrays]:
    """torch's products of parameters and floating inputs with cotangents, and these cotangents.

    `cotangents` makes them of the outputs.
    """
    tensors = jax.tree.map(_tensor, dict(inputs))
    outputs = leaves(call(module, **tensors))
    seeds = cotangents(arrays(outputs))
    parameters = {} if module is None else {k: p for k, p in module.named_parameters() if p.requires_grad}
    floats = {k: v for k, v in leaves(tensors).items() if v.requires_grad}
    variables = [*parameters.values(), *floats.values()]
    roots = {k: outputs[k] for k in seeds if outputs[k].requires_grad}
    grads = torch.autograd.grad(
        list(roots.values()),
        variables,
        [torch.from_numpy(np.asarray(seeds[k])) for k in roots],
        allow_unused=True,
    )
    products = [
        as_numpy(torch.zeros_like(v) if g is None else g) for v, g in zip(variables, grads, strict=True)
    ]
    by_parameter = dict(zip(parameters, products, strict=False))
    by_input = dict(zip(floats, products[len(parameters) :], strict=True))
    return Vjp(arrays(outputs), by_parameter, by_input), seeds


def jax_vjp(model: nnx.Module | None, call: Call = called) -> Callable[..., Vjp]:
    """A function, compiled once, of inputs and cotangents by output -> JAX's outputs and products.

    Its third argument, if given, has arrays by path that take the place of the model's own.
    """
    graph, params, rest = state.split(nnx.Module() if model is None else model)
    rows = [] if model is None else layout(model)

    @jax.jit
    def run(params: Any, rest: Any, inputs: Any, seeds: Any) -> Any:
        values: list[Any]
        tree: Any
        values, tree = jax.tree.flatten(inputs)

        def restored(floats: list[Any]) -> Any:
            """The inputs with these floating ones; None for the others where nothing is given for them."""
            remaining = iter(floats)
            return [next(remaining) if is_float(v) else None for v in values]

        def forward(params: Any, floats: list[Any]) -> Any:
            merged = state.merge(graph, params, rest)
            given = [v if f is None else f for v, f in zip(values, restored(floats), strict=True)]
            outputs = leaves(call(merged, **tree.unflatten(given)))
            return {k: outputs[k] for k in seeds}, outputs

        _, pullback, outputs = jax.vjp(forward, params, [v for v in values if is_float(v)], has_aux=True)
        d_params, d_floats = pullback(seeds)
        return outputs, d_params, leaves(tree.unflatten(restored(d_floats)))

    def vjp(inputs: Inputs, cotangents: Arrays, replaced: Inputs | None = None) -> Vjp:
        given, seeds = jax.tree.map(jnp.asarray, (dict(inputs), cotangents))
        weights = [{k: (replaced or {}).get(k, v) for k, v in part.items()} for part in (params, rest)]
        outputs, d_params, d_inputs = run(*weights, given, seeds)
        return Vjp(arrays(outputs), to_torch(rows, d_params), arrays(d_inputs))

    return vjp


def assert_same_vjp(actual: Vjp, expected: Vjp, bound: float = BOUND) -> None:
    """Outputs and products agree; gradients that are rounding in both are measured against the largest."""
    zeros, scale = structural_zeros(expected.parameters, actual.parameters), largest(expected.parameters)
    for part in Vjp._fields:
        errors = compare(getattr(expected, part), getattr(actual, part), zeros=zeros, scale=scale)
        assert errors.worst < bound, (part, errors.by_name, errors.reasons)


def assert_twins_agree(
    theirs: torch.nn.Module, ours: nnx.Module, inputs: Inputs, *, call: Call = called, bound: float = BOUND
) -> Any:
    """Every output and, for each floating one by itself, its products are the same in both. Returns ours."""
    run = jax_vjp(ours, call)
    expected, cotangents = torch_vjp(theirs, inputs, call=call)
    actual = run(inputs, cotangents)
    assert_same_vjp(actual, expected, bound)
    for key in cotangents if len(cotangents) > 1 else ():
        alone = {k: v if k == key else np.zeros_like(v) for k, v in cotangents.items()}
        expected, _ = torch_vjp(theirs, inputs, functools.partial(_given, alone), call)
        assert_same_vjp(run(inputs, alone), expected, bound)
    return actual.outputs if set(actual.outputs) != {""} else actual.outputs[""]


def _given(cotangents: Arrays, outputs: Arrays) -> Arrays:
    return cotangents


def _tensor(value: Any) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(as_numpy(value)))
    return tensor.requires_grad_(tensor.is_floating_point())
