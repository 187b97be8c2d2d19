"""Optimizer state between optax and torch.optim: the rows that convert weights convert momenta and moments too."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxarch import nn
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.convert.strict import check_names
from jaxarch.errors import ConversionError, require_torch
from jaxarch.optim import hyper_parameters
from jaxarch.optim.optimizer import GroupState
from jaxarch.optim.rules import AdagradState, AdamaxState, DampenedState, MuonState, NadamState

# A state of optax or of `jaxarch.optim` -> torch's slot -> its field.
SLOTS: dict[type, dict[str, str]] = {
    optax.ScaleByAdamState: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    optax.ScaleByAmsgradState: {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    AdamaxState: {"exp_avg": "mu", "exp_inf": "nu"},
    NadamState: {"exp_avg": "mu", "exp_avg_sq": "nu", "mu_product": "mu_product"},
    optax.TraceState: {"momentum_buffer": "trace"},
    DampenedState: {"momentum_buffer": "trace"},
    MuonState: {"momentum_buffer": "trace"},
    optax.ScaleByRmsState: {"square_avg": "nu"},
    optax.ScaleByRStdDevState: {"square_avg": "nu", "grad_avg": "mu"},
    AdagradState: {"sum": "sum_of_squares"},
    optax.ScaleByLionState: {"exp_avg": "mu"},
}
# Where one of these is the only slot, the optimizer is SGD, Muon or Lion, of which torch keeps no step.
STEPLESS = ("momentum_buffer", "exp_avg")
PLAIN = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None}
# The further entries of torch's groups, beside the hyper-parameters.
EXTRAS: dict[str, dict[str, Any]] = {
    "adamw": {**PLAIN, "decoupled_weight_decay": True},
    "adam": {**PLAIN, "decoupled_weight_decay": False},
    "sgd": {k: PLAIN[k] for k in ("maximize", "foreach", "differentiable", "fused")},
    "rmsprop": {k: PLAIN[k] for k in ("maximize", "foreach", "capturable", "differentiable")},
    "adagrad": {k: PLAIN[k] for k in ("maximize", "foreach", "differentiable", "fused")},
}
WRAPPERS = ("optimizer", "optimizer_state_dict")
# torch's parameter name -> slot -> value
TorchState = Mapping[str, Mapping[str, Any]]


def to_torch_optimizer(rows: Iterable[Row], opt_state: Any) -> dict[str, dict[str, Any]]:
    """The state of an optax optimizer as torch.optim keeps it, by torch's parameter names.

    Returns:
        torch's name -> {"step", "exp_avg", "exp_avg_sq", ...}, arrays in torch's layout; {} for an optimizer
        without state.

    Raises:
        ConversionError: a parameter has two states that torch keeps under one name.
    """
    rows = [r for r in rows if r.trainable]
    torch_state: dict[str, dict[str, Any]] = {}
    for single in _single_states(opt_state):
        states, step = _slot_states(single), step_of(single)
        slots = [(slot, getattr(s, field)) for s in states for slot, field in SLOTS[type(s)].items()]
        paths = _paths(states)
        for row in (r for r in rows if r.path in paths):
            values: dict[str, Any] = {} if _is_stepless(slots) else {"step": step}
            for slot, value in slots:
                if slot in values or slot in torch_state.get(row.torch, {}):
                    raise ConversionError(f"{row.torch} has two states of the name {slot}")
                is_flat = isinstance(value, Mapping)
                values[slot] = to_torch([row], value)[row.torch] if is_flat else np.asarray(value)
            torch_state.setdefault(row.torch, {}).update(values)
    return {r.torch: torch_state[r.torch] for r in rows if r.torch in torch_state}


def from_torch_optimizer(
    rows: Iterable[Row], state: TorchState, opt_state: Any, *, step: int | None = None
) -> Any:
    """`opt_state` with torch's slots and step, from which schedules continue.

    Args:
        state: torch's parameter name -> slots, for example {"step", "exp_avg", "exp_avg_sq"}. Floats are cast to
            the dtypes of `opt_state`.
        opt_state: a state of the optimizer to continue with, for its structure, shapes and dtypes.
        step: the number of steps taken, for SGD, Lion and Muon, whose state does not hold it.

    Raises:
        ConversionError: names, slots or shapes differ, the parameters are at different steps, or no step is known.
    """
    rows = [r for r in rows if r.trainable]
    singles = list(_single_states(opt_state))
    paths = {p for single in singles for p in _paths(_slot_states(single))}
    check_names(
        [r.torch for r in rows if r.path in paths], [k for k, slots in state.items() if slots or paths]
    )
    new_states = {}
    for single in singles:
        states = _slot_states(single)
        single_paths = _paths(states)
        single_rows = [r for r in rows if r.path in single_paths]
        slots = {slot for s in states for slot in SLOTS[type(s)]}
        for row in single_rows:
            _check_slots(row.torch, state[row.torch], slots)
        steps: set[int | None] = {
            int(state[r.torch]["step"]) for r in single_rows if "step" in state[r.torch]
        } or {step}
        if len(steps) != 1:
            raise ConversionError(f"the parameters are at different steps: {sorted(map(str, steps))}")
        (single_step,) = steps
        if single_step is None and _counts(single):
            raise ConversionError("the optimizer state does not say its step: give the steps taken")
        new_states[id(single)] = _with_values(single, single_rows, state, single_step)
    return _replaced(opt_state, new_states)


def step_of(opt_state: Any) -> int:
    """The number of steps an optimizer has taken, as its states count them; 0 if none counts.

    Raises:
        ConversionError: they disagree.
    """
    counts = {int(c) for c in _counts(opt_state)}
    if len(counts) > 1:
        raise ConversionError(f"the optimizer's states are at different steps: {sorted(counts)}")
    return counts.pop() if counts else 0


# --------------------------------------------------------------------------------------- torch's state_dict


class Hyper(NamedTuple):
    """The arguments of `create_optimizer` of both packages: an optimizer without its state."""

    kind: str = "adamw"
    learning_rate: float | Callable[[Any], Any] = 1e-3
    weight_decay: float = 0.0
    groups: Mapping[str, Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = {}


def torch_rows(build: Callable[[], nnx.Module]) -> list[Row]:
    """The trainable rows of a model in the order of torch's `parameters()`: that in which attributes were set."""
    rows: list[Row] = []

    def collect() -> nnx.Module:
        model = build()
        by_path = {r.path: r for r in layout(model) if r.trainable}
        rows.extend(by_path[path] for path in _registered(model) if path in by_path)
        return model

    nnx.eval_shape(collect)
    return rows


def to_optimizer_state_dict(
    rows: Sequence[Row], params: Mapping[str, Any], opt_state: Any, hyper: Hyper
) -> dict[str, Any]:
    """What torch's `optimizer.state_dict()` would be, with the step beside it.

    It loads into the optimizer that torchref.optim.create_optimizer makes with the same arguments, whose groups
    are, for each glob and for parameters that no glob matches: the matrices, then the other parameters.

    Args:
        rows: the trainable rows in torch's order, see `torch_rows`.
        params: the parameters by path, for their shapes.

    Raises:
        ConversionError: torch has no optimizer of the kind with this state.
        UsageError: torch is not installed.
    """
    torch = require_torch("an optimizer's state_dict")
    slots, step = to_torch_optimizer(rows, opt_state), step_of(opt_state)
    groups = param_groups(rows, params, hyper, step)
    state = {}
    for group in groups:
        for index, name in zip(group["params"], group["param_names"], strict=True):
            if values := slots.get(name, {}):
                state[index] = {
                    k: torch.tensor(float(v), dtype=torch.float32) if k == "step" else as_tensor(v)
                    for k, v in values.items()
                }
    return {"state": state, "param_groups": groups, "step": step}


def param_groups(
    rows: Sequence[Row], params: Mapping[str, Any], hyper: Hyper, step: int = 0
) -> list[dict[str, Any]]:
    """torch's `param_groups` of an optimizer, with names; the learning rate is that of a step.

    Raises:
        ConversionError: a kind, or a group of another kind, that torch cannot hold in a state_dict.
    """
    if hyper.kind not in EXTRAS:
        raise ConversionError(f"{hyper.kind} has no torch state_dict here; known: {', '.join(EXTRAS)}")
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in rows:
        glob = next((g for g in hyper.groups or {} if fnmatch.fnmatchcase(row.path, g)), "")
        fields = dict((hyper.groups or {}).get(glob, {}))
        if fields.pop("optimizer", hyper.kind) != hyper.kind:
            raise ConversionError(f"group {glob!r} has another optimizer: torch keeps one in a state_dict")
        is_matrix = params[row.path].ndim > 1
        key = (glob, "weight_decay" in fields or is_matrix)
        rate = fields.pop("learning_rate", hyper.learning_rate)
        rate = float(rate(step)) if callable(rate) else rate
        group = {
            **hyper_parameters(hyper.kind),
            **hyper.options,
            **EXTRAS[hyper.kind],
            "weight_decay": hyper.weight_decay if is_matrix else 0.0,
            "lr": rate * fields.pop("lr_scale", 1.0),
            **fields,
        }
        groups.setdefault(key, {**group, "params": [], "param_names": []})["param_names"].append(row.torch)
    first = 0
    for group in groups.values():
        group["params"] = list(range(first, first + len(group["param_names"])))
        first += len(group["param_names"])
    return list(groups.values())


def from_optimizer_state_dict(
    rows: Sequence[Row], state_dict: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], int | None, list[dict[str, Any]]]:
    """(slots by torch's parameter name, steps taken, groups) of what torch saved; alone or under "optimizer".

    Names are those of the groups (`torch.optim.AdamW(model.named_parameters())`); without them the parameters of
    a single group are taken in the order of `rows`. The step is None where nothing gives it.

    Raises:
        ConversionError: it is not an optimizer's state, or its parameters have no names.
    """
    steps = {int(state_dict["step"])} if "step" in state_dict else set()
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    steps |= {int(state_dict["step"])} if "step" in state_dict else set()
    if not isinstance(state_dict.get("state"), Mapping) or not state_dict.get("param_groups"):
        raise ConversionError("this is no optimizer's state_dict: it lacks state or param_groups")
    groups = [dict(g) for g in state_dict["param_groups"]]
    for group in groups:
        if "param_names" not in group:
            if len(groups) > 1 or len(group["params"]) != len(rows):
                raise ConversionError(
                    "the optimizer's groups do not name their parameters: make it of model.named_parameters()"
                )
            group["param_names"] = [r.torch for r in rows]
        if group.get("maximize"):
            raise ConversionError("the optimizer maximizes, which jaxarch does not")
    names = {i: n for g in groups for i, n in zip(g["params"], g["param_names"], strict=True)}
    slots = {
        names[i]: {k: as_numpy(v) for k, v in values.items() if v is not None}
        for i, values in state_dict["state"].items()
    }
    steps |= {int(values["step"]) for values in slots.values() if "step" in values}
    if len(steps) > 1:
        raise ConversionError(f"the parameters are at different steps: {sorted(steps)}")
    return slots, steps.pop() if steps else None, groups


def check_groups(
    rows: Sequence[Row], params: Mapping[str, Any], hyper: Hyper, groups: Iterable[Mapping]
) -> None:
    """Check that torch's groups have the hyper-parameters of `hyper` for every parameter; rates may differ.

    Raises:
        ConversionError: they have not.
    """
    actual = {name: g for g in groups for name in g["param_names"]}
    expected = {name: g for g in param_groups(rows, params, hyper) for name in g["param_names"]}
    check_names(expected, actual)
    free = {"lr", "initial_lr", "params", "param_names", "foreach", "fused", "capturable", "differentiable"}
    for name, group in expected.items():
        for key, value in group.items():
            if key not in free and key not in actual[name]:
                raise ConversionError(f"the optimizer of {name} has no {key}: it is not {hyper.kind}")
            if key not in free and _as_tuple(actual[name][key]) != _as_tuple(value):
                raise ConversionError(
                    f"the optimizer's {key} of {name} is {actual[name][key]}, the recipe's is {value}"
                )


# -------------------------------------------------------------------------------------------------- shared


def _is_namedtuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _walk(node: Any) -> Iterator[Any]:
    """Every state below a node; states with slots are not descended into."""
    if _is_namedtuple(node):
        yield node
        if type(node) in SLOTS:
            return
    if isinstance(node, tuple | list):
        for child in node:
            yield from _walk(child)
    elif isinstance(node, Mapping):
        for child in node.values():
            yield from _walk(child)


def _has_several(node: Any) -> bool:
    """Whether the states of several optimizers are below: of a task's updates, or of groups of parameters."""
    if isinstance(node, Mapping | GroupState):
        return True
    return isinstance(node, tuple) and any(isinstance(n, GroupState) for n in _walk(node))


def _single_states(node: Any) -> Iterator[Any]:
    """The states of the single optimizers below, each of which has one count of steps."""
    if not _has_several(node):
        yield node
    else:
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _single_states(child)


def _replaced(node: Any, new_states: Mapping[int, Any]) -> Any:
    """The tree with its single optimizers' states replaced, by their ids."""
    if not _has_several(node):
        return new_states[id(node)]
    if isinstance(node, Mapping):
        return {k: _replaced(v, new_states) for k, v in node.items()}
    children = [_replaced(v, new_states) for v in node]
    return type(node)(*children) if _is_namedtuple(node) else tuple(children)


def _slot_states(single: Any) -> list[Any]:
    return [n for n in _walk(single) if type(n) in SLOTS]


def _counts(opt_state: Any) -> list[Any]:
    return [n.count for n in _walk(opt_state) if "count" in n._fields]


def _paths(states: Iterable[Any]) -> set[str]:
    values = [getattr(s, field) for s in states for field in SLOTS[type(s)].values()]
    return {path for value in values if isinstance(value, Mapping) for path in value}


def _is_stepless(slots: Sequence[tuple[str, Any]]) -> bool:
    return len(slots) == 1 and slots[0][0] in STEPLESS


def _check_slots(name: str, actual: Mapping[str, Any], expected: set[str]) -> None:
    if missing := sorted(expected - set(actual)):
        raise ConversionError(f"the optimizer state of {name} lacks {missing[0]}: it is another optimizer's")
    if extra := sorted(set(actual) - expected - {"step"}):
        raise ConversionError(f"the optimizer state of {name} has {extra[0]}: it is another optimizer's")


def _with_values(node: Any, rows: Sequence[Row], state: TorchState, step: int | None) -> Any:
    """A single optimizer's state with torch's values."""
    if not _is_namedtuple(node):
        return tuple(_with_values(n, rows, state, step) for n in node) if isinstance(node, tuple) else node
    values: dict[str, Any] = {}
    if "count" in node._fields:
        values["count"] = jnp.asarray(np.asarray(step), node.count.dtype)
    for slot, field in SLOTS.get(type(node), {}).items():
        old = getattr(node, field)
        if isinstance(old, Mapping):
            new = from_torch(rows, {r.torch: state[r.torch][slot] for r in rows}, old)
            values[field] = {k: jnp.asarray(new[k]) for k in old}
        else:
            values[field] = jnp.asarray(as_numpy(state[rows[0].torch][slot]), old.dtype)
    node = node._replace(**values)
    return node if type(node) in SLOTS else type(node)(*(_with_values(n, rows, state, step) for n in node))


def _registered(module: Any, prefix: str = "") -> Iterator[str]:
    """The paths of a module's parameters, before those of its children, in torch's order."""
    items = list(enumerate(module)) if isinstance(module, list | tuple) else nn.named_children(module)
    yield from (f"{prefix}{k}" for k, v in items if isinstance(v, nnx.Param))
    for key, child in items:
        if isinstance(child, nnx.Module | list | tuple):
            yield from _registered(child, f"{prefix}{key}.")


def _as_tuple(value: Any) -> Any:
    """A list as a tuple, so that both compare equal; the identity for other values."""
    return tuple(value) if isinstance(value, list | tuple) else value
