"""Which operation of which module produced the first NaN, forward or backward, and on which line."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jax._src import source_info_util  # the only source of an equation's user line
from jax._src.core import DropVar

from jaxarch import state
from jaxarch.errors import DivergenceError
from jaxarch.observe import observe

FORWARD, BACKWARD = "forward", "backward"
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
}


@dataclass(frozen=True)
class Anomaly:
    """Where the first NaN (or infinity) that reached the results came from.

    `primitive` is "argument" if an argument was already non-finite, and `module` is then its path; `phase` is
    forward or backward; `line` is FILE:LINE (FUNCTION), of the forward call that a backward operation belongs
    to.
    """

    primitive: str
    module: str
    phase: str
    line: str

    def __str__(self) -> str:
        if self.primitive == "argument":
            return f"{self.module} was already non-finite"
        where = f"module {self.module}" if self.module else "no module"
        return f"produced by {self.primitive}, {self.phase}, in {where}, at {self.line}"


class AnomalyError(DivergenceError):
    """A result is not finite; `anomaly` says why."""

    def __init__(self, what: str, anomaly: Anomaly | None):
        cause = "it occurs in compiled code only" if anomaly is None else str(anomaly)
        super().__init__(f"{what} in the loss or its gradient: {cause}")
        self.anomaly = anomaly


def detect_anomaly(
    loss_fn: Callable[..., Any], model: nnx.Module, *arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """`enable_autograd_detection(loss_fn)(model, *arguments)`: the loss and its gradient by path."""
    return enable_autograd_detection(loss_fn)(model, *arguments)


def enable_autograd_detection(
    loss_fn: Callable[..., Any], *, infinities: bool = False
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """A function (model, *arguments) -> (loss, gradients by path) that raises where either is NaN.

    The model's running statistics and random streams advance as in a plain call. As long as the results are
    finite the cost is that of one check of them; the search starts when it fails.

    Args:
        loss_fn: (model, *arguments) -> scalar.
        infinities: report infinities, too.

    Raises:
        AnomalyError: from the returned function; it names the primitive, the module and the line.
    """

    def graded(
        graph: nnx.GraphDef, params: state.Flat, rest: state.Flat, arguments: tuple[Any, ...]
    ) -> tuple[Any, state.Flat, state.Flat]:
        def loss_of(params: state.Flat) -> tuple[Any, state.Flat]:
            model = state.merge(graph, params, rest)
            with named(model):
                loss = loss_fn(model, *arguments)
            return loss, state.rest_of(model)

        (loss, new_rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        return loss, gradients, new_rest

    compiled = jax.jit(graded, static_argnums=0)

    @functools.wraps(loss_fn)
    def checked(model: nnx.Module, *arguments: Any) -> tuple[Any, dict[str, Any]]:
        graph, params, rest = state.split(model)
        loss, gradients, new_rest = compiled(graph, params, rest, arguments)
        if _any_bad((loss, gradients, new_rest), infinities):
            run = functools.partial(graded, graph)
            names = ({k: k for k in params}, {k: k for k in rest}, _names(arguments))
            anomaly = _search(run, (params, rest, arguments), names, infinities)
            raise AnomalyError("NaN or infinity" if infinities else "NaN", anomaly)
        state.update(model, new_rest)
        return loss, gradients

    return checked


def first_anomaly(function: Callable[..., Any], *arguments: Any, infinities: bool = False) -> Anomaly | None:
    """Where the first NaN in the results of any function comes from; None if they have none.

    Operations are attributed to modules if an argument is an nnx module, or if the function names them as a
    step with a monitor does. A jitted function is inlined; its donated arguments stay valid.
    """
    splits = [state.split(a) if isinstance(a, nnx.Module) else None for a in arguments]
    leaves = tuple((s.params, s.rest) if s else a for s, a in zip(splits, arguments, strict=True))

    def run(*leaves: Any) -> Any:
        with contextlib.ExitStack() as stack:
            merged = []
            for split, leaf in zip(splits, leaves, strict=True):
                merged.append(leaf if split is None else state.merge(split.graph, *leaf))
                if split is not None:
                    stack.enter_context(named(merged[-1]))
            return function(*merged)

    return _search(run, leaves, _names(leaves), infinities)


@contextlib.contextmanager
def named(model: nnx.Module) -> Iterator[None]:
    """Every operation traced within carries its module's path as a name scope."""

    def hook(path: str, run: Callable[[], Any]) -> Any:
        with jax.named_scope(path) if path else contextlib.nullcontext():
            return run()

    with observe(model, hook):
        yield


def _names(arguments: Any) -> Any:
    """A name for each leaf, for messages."""
    return jax.tree_util.tree_map_with_path(lambda p, _: f"argument {jax.tree_util.keystr(p)}", arguments)


def _bad(value: Any, infinities: bool) -> Any:
    """Whether an array has a NaN; integers, keys and other non-floats have none."""
    if not jnp.issubdtype(
        jnp.result_type(value) if not hasattr(value, "dtype") else value.dtype, jnp.inexact
    ):
        return jnp.zeros((), bool)
    return (~jnp.isfinite(value) if infinities else jnp.isnan(value)).any()


@functools.partial(jax.jit, static_argnums=1)
def _flags(values: Any, infinities: bool) -> Any:
    return jnp.stack([_bad(v, infinities) for v in jax.tree.leaves(values)]).any()


def _any_bad(values: Any, infinities: bool) -> bool:
    return bool(_flags(values, infinities))


def _search(run: Callable[..., Any], arguments: tuple, names: Any, infinities: bool) -> Anomaly | None:
    # Inlined, each equation has its own line; a jitted function's trace is shared by all its callers.
    with jax.disable_jit():
        traced = jax.make_jaxpr(run)(*arguments)
    values = [jnp.asarray(v) for v in jax.tree.leaves(arguments)]
    return _descend(traced.jaxpr, traced.consts, values, jax.tree.leaves(names), infinities, None)


def _descend(
    jaxpr: Any,
    consts: list[Any],
    values: list[Any],
    names: list[str],
    infinities: bool,
    outer: Anomaly | None,
) -> Anomaly | None:
    """The first equation with a bad result and no bad operand, among those that a bad output depends on."""
    order = [*jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars if not isinstance(v, DropVar))]
    is_bad = functools.partial(_bad, infinities=infinities)
    flags = jax.jit(lambda *values: [is_bad(v) for v in _evaluate(jaxpr, consts, order, values)])(*values)
    bad = {v for v, flag in zip(order, flags, strict=True) if flag}
    # From the bad outputs back to their origin; a NaN that is masked out is not reported.
    reached = {v for v in jaxpr.outvars if _is_variable(v) and v in bad}
    if not reached and outer is None:
        return None
    first = None
    for i, equation in reversed(list(enumerate(jaxpr.eqns))):
        if reached.isdisjoint(equation.outvars):
            continue
        sources = {v for v in equation.invars if _is_variable(v) and v in bad}
        reached |= sources
        if not sources:
            first = i
    for variable, name in zip(jaxpr.invars, names, strict=True):
        if variable in reached:
            return Anomaly("argument", name, FORWARD, "")
    if first is None:
        return outer
    equation = jaxpr.eqns[first]
    anomaly = _describe(equation, outer)
    inner = _inner(equation)
    if not inner:
        return anomaly
    operands = _operands(equation, jaxpr, consts, values)
    if equation.primitive.name == "cond":
        branch, operands = inner[int(operands[0])], operands[1:]
        return _descend(branch.jaxpr, branch.consts, operands, [""] * len(operands), infinities, anomaly)
    jaxpr, consts = getattr(inner[0], "jaxpr", inner[0]), getattr(inner[0], "consts", [])
    return _descend(jaxpr, consts, operands, [""] * len(operands), infinities, anomaly)


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, jax.extend.core.Literal)


def _evaluate(jaxpr: Any, consts: Any, variables: list[Any], values: Any) -> list[Any]:
    """The values of some variables of a jaxpr."""
    renamed = jaxpr.replace(outvars=variables, debug_info=jaxpr.debug_info.with_unknown_names())
    return jax.extend.core.jaxpr_as_fun(jax.extend.core.ClosedJaxpr(renamed, consts))(*values)


def _operands(equation: Any, jaxpr: Any, consts: Any, values: Any) -> list[Any]:
    variables = [v for v in equation.invars if _is_variable(v)]
    evaluated = jax.jit(lambda *x: _evaluate(jaxpr, consts, variables, x))(*values)
    value_of = dict(zip(variables, evaluated, strict=True))
    return [value_of[v] if _is_variable(v) else jnp.asarray(v.val, v.aval.dtype) for v in equation.invars]


def _inner(equation: Any) -> list[Any]:
    """The jaxprs of a call or of a condition's branches; loops are not searched."""
    if equation.primitive.name == "cond":
        return list(equation.params["branches"])
    if equation.primitive.name not in CALLS:
        return []
    return [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")][:1]


def _describe(equation: Any, outer: Anomaly | None) -> Anomaly:
    stack = equation.source_info.name_stack.stack
    scopes = [s.name for s in stack if isinstance(s, source_info_util.Scope)]
    transforms = {s.name for s in stack if isinstance(s, source_info_util.Transform)}
    frame = source_info_util.user_frame(equation.source_info.traceback)
    line = (
        f"{_short(frame.file_name)}:{frame.start_line} ({frame.function_name})"
        if frame
        else "an unknown line"
    )
    module = scopes[-1] if scopes else (outer.module if outer else "")
    backward = "transpose" in transforms or (outer is not None and outer.phase == BACKWARD)
    return Anomaly(equation.primitive.name, module, BACKWARD if backward else FORWARD, line)


def _short(file: str) -> str:
    """A file below the working directory relative to it."""
    relative = os.path.relpath(file)
    return file if relative.startswith(os.pardir) else relative
