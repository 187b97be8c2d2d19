"""`jaxarch show`: a model's modules, shapes, parameters and FLOPs, without allocating it."""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr
from rich.console import Console
from rich.table import Table

from jaxarch import catalog, state
from jaxarch.errors import UsageError
from jaxarch.nn.kernels import convolution
from jaxarch.observe import observe
from jaxarch.spec import KINDS, Input

SCOPE = "module:"  # prefix of the name scopes that stand for modules


def run(args: argparse.Namespace) -> int:
    """Print the table of modules, or draw feature maps with --features.

    Raises:
        UsageError: unknown names, or an option without effect.
        DataError: the image cannot be read.
    """
    name, variant = catalog.find(args.name)
    variant = args.variant or variant
    if args.features:
        from jaxarch.commands.features import draw_features

        out = args.out or "features.png"
        maps = draw_features(name, args.features, out, variant=variant, weights=args.weights)
        print(f"{len(maps)} maps of {name}")
        print(out)
        return 0
    if args.weights or args.out:
        raise UsageError("--weights and --out have no effect without --features")
    rows = summarize(name, variant)
    table = Table("module", "class", "parameters", "FLOPs", "shapes")
    for r in rows[1:]:
        shapes = "  ".join(f"{k} {list(s)}" for k, s in r.shapes.items())
        table.add_row(r.path, r.cls, f"{r.parameters:,}", f"{r.flops:,}", shapes)
    Console().print(table)
    variant = variant or catalog.default_variant(name)
    total = rows[0]
    print(f"{name} {variant}: {total.parameters:,} parameters, {total.flops:,} FLOPs forward")
    return 0


@dataclass(frozen=True)
class ModuleRow:
    """One module: its path, class, the shapes of its direct parameters, and parameters and FLOPs in total."""

    path: str
    cls: str
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    flops: int


def summarize(name: str, variant: str | None = None, **overrides: Any) -> list[ModuleRow]:
    """The modules of a catalog model in the order of their paths; the first row is the whole model.

    FLOPs are those of one forward pass in eval mode over the page's inputs: two for each multiply-add of a
    matrix product or convolution; everything else is left out, as is usual in published tables.

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
        descendants = {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}
        direct = {k: tuple(v.shape) for k, v in descendants.items() if "." not in k}
        count = sum(math.prod(v.shape) for v in descendants.values())
        rows.append(ModuleRow(dotted, type(module).__name__, direct, count, flops.get(dotted, 0)))
    return rows


def abstract_inputs(
    inputs: Mapping[str, Input], arguments: Mapping[str, Any]
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

    def forward(params: state.Flat, rest: state.Flat, inputs: dict[str, Any]) -> Any:
        merged = state.merge(graph, params, rest)
        with observe(merged, _in_scope):
            return merged(**inputs)

    jaxpr = jax.make_jaxpr(forward)(params, rest, dict(inputs))
    totals: dict[str, int] = defaultdict(int)
    for flops, stack in _flops(jaxpr.jaxpr, 1, ""):
        scopes = [s.removeprefix(SCOPE) for s in stack.split("/") if s.startswith(SCOPE)]
        path = scopes[-1] if scopes else ""
        parts = path.split(".") if path else []
        for i in range(len(parts) + 1):
            totals[".".join(parts[:i])] += flops
    return dict(totals)


def _in_scope(path: str, call: Callable[[], Any]) -> Any:
    with jax.named_scope(SCOPE + path):
        return call()


def _flops(jaxpr: Jaxpr, times: int, outer: str) -> Iterator[tuple[int, str]]:
    """(FLOPs, name stack) of each product in a jaxpr; bodies of loops count as often as they run."""
    for eqn in jaxpr.eqns:
        stack = f"{outer}/{eqn.source_info.name_stack}"
        inputs, output = [_shape(v) for v in eqn.invars], _shape(eqn.outvars[0]) if eqn.outvars else ()
        match eqn.primitive.name:
            case "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                depth = math.prod(inputs[0][i] for i in contract)
                yield 2 * times * depth * math.prod(output), stack
            case "conv_general_dilated":
                kernel, numbers = inputs[1], eqn.params["dimension_numbers"]
                depth = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
                yield 2 * times * depth * math.prod(output), stack
            case name if name.startswith("convolution"):
                yield times * convolution.flops(name, inputs, output), stack
            case _:
                repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
                for value in eqn.params.values():
                    for sub in value if isinstance(value, tuple | list) else (value,):
                        sub = getattr(sub, "jaxpr", sub)
                        if isinstance(sub, Jaxpr):
                            yield from _flops(sub, times * repeats, stack)


def _shape(variable: Any) -> tuple[int, ...]:
    """The shape of a jaxpr's variable; () of a token, which has none."""
    return getattr(variable.aval, "shape", ())
