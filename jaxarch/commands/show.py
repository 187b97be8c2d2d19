"""What a model is made of: modules, shapes, parameters and FLOPs, without allocating it."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxarch import catalog, state
from jaxarch.nn.kernels import convolution
from jaxarch.observe import observe
from jaxarch.spec import KINDS


@dataclass(frozen=True)
class ModuleRow:
    """One module: its path, class, own parameter shapes, parameters and FLOPs, descendants included."""

    path: str
    cls: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    flops: int


def summarize(name: str, variant: str | None = None, **overrides) -> list[ModuleRow]:
    """The modules of a catalog model in the order of their paths; the first row is the whole model.

    FLOPs are those of one forward pass in eval mode over the page's inputs: two for each multiply-add of a
    matrix product or convolution, everything else left out, as is the custom in published tables.

    Raises:
        UsageError: unknown name, variant or argument.
    """
    entry = catalog.page(name)
    variant = variant or catalog.default_variant(name)
    model = nnx.eval_shape(lambda: catalog.create_model(name, variant, **overrides))
    model.eval()
    inputs = abstract_inputs(entry.inputs_of(variant), catalog.arguments(name, variant, overrides))
    flops = module_flops(model, inputs)
    params = state.split(model).params
    rows = []
    for path, module in sorted(nnx.iter_modules(model), key=lambda item: tuple(map(str, item[0]))):
        dotted = state.join(path)
        prefix = f"{dotted}." if dotted else ""
        below = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        own = {k: tuple(v.shape) for k, v in below.items() if "." not in k}
        count = sum(math.prod(v.shape) for v in below.values())
        rows.append(ModuleRow(dotted, type(module).__name__, own, count, flops.get(dotted, 0)))
    return rows


def abstract_inputs(
    inputs: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, jax.ShapeDtypeStruct]:
    """The page's inputs as shapes and dtypes in JAX's layout."""
    result = {}
    for key, spec in inputs.items():
        shape = [arguments[s] if isinstance(s, str) else s for s in spec.shape]
        floating, axis = KINDS[spec.kind]
        if axis:
            shape = [*shape[:axis], *shape[axis + 1 :], shape[axis]]
        dtype = jnp.result_type(float if floating else bool if spec.kind == "mask" else int)
        result[key] = jax.ShapeDtypeStruct(tuple(shape), dtype)
    return result


def module_flops(model: nnx.Module, inputs: Mapping[str, Any]) -> dict[str, int]:
    """FLOPs of a forward pass by module path (descendants included; "" is the whole model)."""
    graph, params, rest = state.split(model)

    def forward(params, rest, inputs):
        merged = state.merge(graph, params, rest)
        with observe(merged, _named):
            return merged(**inputs)

    jaxpr = jax.make_jaxpr(forward)(params, rest, dict(inputs))
    totals: dict[str, int] = defaultdict(int)
    for flops, stack in _flops(jaxpr.jaxpr, 1, ""):
        scopes = [s.removeprefix(_MARK) for s in stack.split("/") if s.startswith(_MARK)]
        path = scopes[-1] if scopes else ""
        parts = path.split(".") if path else []
        for i in range(len(parts) + 1):
            totals[".".join(parts[:i])] += flops
    return dict(totals)


_MARK = "module:"


def _named(path: str, run: Callable[[], Any]) -> Any:
    with jax.named_scope(_MARK + path):
        return run()


def _flops(jaxpr, times: int, outer: str) -> Iterator[tuple[int, str]]:
    """(FLOPs, name stack) of each product in a jaxpr; bodies of loops count as often as they run."""
    for eqn in jaxpr.eqns:
        stack = f"{outer}/{eqn.source_info.name_stack}"
        match eqn.primitive.name:
            case "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
                yield 2 * times * depth * math.prod(eqn.outvars[0].aval.shape), stack
            case "conv_general_dilated":
                kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
                depth = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
                yield 2 * times * depth * math.prod(eqn.outvars[0].aval.shape), stack
            case name if name.startswith("convolution"):
                count = convolution.flops(name, [v.aval.shape for v in eqn.invars], eqn.outvars[0].aval.shape)
                yield times * count, stack
            case _:
                inside = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
                for value in eqn.params.values():
                    for sub in value if isinstance(value, tuple | list) else (value,):
                        sub = getattr(sub, "jaxpr", sub)
                        if hasattr(sub, "eqns"):
                            yield from _flops(sub, times * inside, stack)
