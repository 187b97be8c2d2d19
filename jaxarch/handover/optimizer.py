"""Optimizer state between optax and torch.optim: the rows that carry weights carry momenta and moments too."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.state_dict import check_names, from_torch, to_torch
from jaxarch.errors import ConversionError

# State of optax or of `jaxarch.train.optim` -> torch's slot -> its field. By name: the training loop stays unloaded.
SLOTS: dict[str, dict[str, str]] = {
    "ScaleByAdamState": {"exp_avg": "mu", "exp_avg_sq": "nu"},
    "ScaleByAmsgradState": {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    "AdamaxState": {"exp_avg": "mu", "exp_inf": "nu"},
    "NadamState": {"exp_avg": "mu", "exp_avg_sq": "nu", "mu_product": "mu_product"},
    "TraceState": {"momentum_buffer": "trace"},
    "DampenedState": {"momentum_buffer": "trace"},
    "MuonState": {"momentum_buffer": "trace"},
    "ScaleByRmsState": {"square_avg": "nu"},
    "ScaleByRStdDevState": {"square_avg": "nu", "grad_avg": "mu"},
    "AdagradState": {"sum": "sum_of_squares"},
    "ScaleByLionState": {"exp_avg": "mu"},
}
STEPLESS = (
    "momentum_buffer",
    "exp_avg",
)  # alone, these are SGD's, Muon's, Lion's, of which torch keeps no step
PLAIN = {"maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None}
# What torch's groups say besides the hyper-parameters.
EXTRAS: dict[str, dict[str, Any]] = {
    "adamw": {**PLAIN, "decoupled_weight_decay": True},
    "adam": {**PLAIN, "decoupled_weight_decay": False},
    "sgd": {k: PLAIN[k] for k in ("maximize", "foreach", "differentiable", "fused")},
    "rmsprop": {k: PLAIN[k] for k in ("maximize", "foreach", "capturable", "differentiable")},
    "adagrad": {k: PLAIN[k] for k in ("maximize", "foreach", "differentiable", "fused")},
}
WRAPPERS = ("optimizer", "optimizer_state_dict")


def to_torch_optimizer(rows: Iterable[Row], opt_state: Any) -> dict[str, dict[str, Any]]:
    """The state of an optax optimizer as torch.optim keeps it, by torch's parameter names.

    Returns:
        torch's name -> {"step", "exp_avg", "exp_avg_sq", ...}, arrays in torch's layout; {} where there is nothing
        to remember.

    Raises:
        ConversionError: a parameter has two states that torch keeps under one name.
    """
    rows = [r for r in rows if r.trainable]
    found: dict[str, dict[str, Any]] = {}
    for unit in _units(opt_state):
        states, step = _states(unit), step_of(unit)
        slots = [(slot, getattr(s, field)) for s in states for slot, field in SLOTS[type(s).__name__].items()]
        paths = _paths(states)
        for row in (r for r in rows if r.path in paths):
            own: dict[str, Any] = {} if _is_stepless(slots) else {"step": step}
            for slot, flat in slots:
                if slot in own or slot in found.get(row.torch, {}):
                    raise ConversionError(f"{row.torch} has two states of the name {slot}")
                own[slot] = (
                    to_torch([row], flat)[row.torch] if isinstance(flat, Mapping) else np.asarray(flat)
                )
            found.setdefault(row.torch, {}).update(own)
    return {r.torch: found[r.torch] for r in rows if r.torch in found}


def from_torch_optimizer(
    rows: Iterable[Row], state: Mapping[str, Mapping[str, Any]], opt_state: Any, *, step: int | None = None
) -> Any:
    """`opt_state` with torch's slots and step; schedules count on from that step.

    Args:
        state: torch's parameter name -> slots, for example {"step", "exp_avg", "exp_avg_sq"}. Floats are cast to
            the dtypes of `opt_state`.
        opt_state: a state of the optimizer to continue with, for its structure, shapes and dtypes.
        step: the steps taken, of which SGD's, Lion's and Muon's state says nothing.

    Raises:
        ConversionError: names, slots or shapes differ, the parameters are at different steps, or no step is known.
    """
    rows = [r for r in rows if r.trainable]
    units = list(_units(opt_state))
    wanted = {p for unit in units for p in _paths(_states(unit))}
    check_names(
        [r.torch for r in rows if r.path in wanted], [k for k, slots in state.items() if slots or wanted]
    )
    renewed = {}
    for unit in units:
        states = _states(unit)
        paths = _paths(states)
        own = [r for r in rows if r.path in paths]
        slots = {slot for s in states for slot in SLOTS[type(s).__name__]}
        for row in own:
            _check_slots(row.torch, state[row.torch], slots)
        steps: set[int | None] = {int(state[r.torch]["step"]) for r in own if "step" in state[r.torch]} or {
            step
        }
        if len(steps) != 1:
            raise ConversionError(f"the parameters are at different steps: {sorted(map(str, steps))}")
        if (at := steps.pop()) is None and _counts(unit):
            raise ConversionError("the optimizer state does not say its step: give the steps taken")
        renewed[id(unit)] = _renewed(unit, own, state, at)
    return _replaced(opt_state, renewed)


def step_of(opt_state: Any) -> int:
    """The steps an optimizer has taken, as its states count them; 0 if none counts.

    Raises:
        ConversionError: they disagree.
    """
    counts = {int(c) for c in _counts(opt_state)}
    if len(counts) > 1:
        raise ConversionError(f"the optimizer's states are at different steps: {sorted(counts)}")
    return counts.pop() if counts else 0


# --------------------------------------------------------------------------------------- torch's state_dict


class Hyper(NamedTuple):
    """What `create_optimizer` of both packages is called with: an optimizer without its state."""

    kind: str = "adamw"
    learning_rate: float | Callable[[Any], Any] = 1e-3
    weight_decay: float = 0.0
    groups: Mapping[str, Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = {}


def torch_rows(build: Callable[[], nnx.Module]) -> list[Row]:
    """The trainable rows of a model in the order of torch's `parameters()`: that in which attributes were set."""
    rows: list[Row] = []

    def note() -> nnx.Module:
        model = build()
        by_path = {r.path: r for r in layout(model) if r.trainable}
        rows.extend(by_path[path] for path in _registered(model) if path in by_path)
        return model

    nnx.eval_shape(note)
    return rows


def to_optimizer_state_dict(
    rows: Sequence[Row], params: Mapping[str, Any], opt_state: Any, hyper: Hyper
) -> dict:
    """What torch's `optimizer.state_dict()` would be, with the step beside it.

    Loads into the optimizer that torchref.optim.create_optimizer makes with the same arguments, whose groups
    are: for each glob, and for what no glob matches, the matrices and then the rest.

    Args:
        rows: the trainable rows in torch's order, see `torch_rows`.
        params: the parameters by path, for their shapes.

    Raises:
        ConversionError: the kind is not one that torch has under this state.
    """
    import torch

    from jaxarch.arrays import as_tensor

    slots, step = to_torch_optimizer(rows, opt_state), step_of(opt_state)
    groups = param_groups(rows, params, hyper, step)
    state = {}
    for group in groups:
        for index, name in zip(group["params"], group["param_names"], strict=True):
            if own := slots.get(name, {}):
                state[index] = {
                    k: torch.tensor(float(v), dtype=torch.float32) if k == "step" else as_tensor(v)
                    for k, v in own.items()
                }
    return {"state": state, "param_groups": groups, "step": step}


def param_groups(rows: Sequence[Row], params: Mapping[str, Any], hyper: Hyper, step: int = 0) -> list[dict]:
    """torch's `param_groups` of an optimizer, with names; the learning rate is that of a step."""
    from jaxarch.optim import hyper_parameters

    if hyper.kind not in EXTRAS:
        raise ConversionError(f"{hyper.kind} has no torch state_dict here; known: {', '.join(EXTRAS)}")
    made: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in rows:
        glob = next((g for g in hyper.groups or {} if fnmatch.fnmatchcase(row.path, g)), "")
        fields = dict((hyper.groups or {}).get(glob, {}))
        if fields.pop("optimizer", hyper.kind) != hyper.kind:
            raise ConversionError(f"group {glob!r} has another optimizer: torch keeps one in a state_dict")
        matrix = params[row.path].ndim > 1
        key = (glob, "weight_decay" in fields or matrix)
        rate = fields.pop("learning_rate", hyper.learning_rate)
        rate = float(rate(step)) if callable(rate) else rate
        group = {
            **hyper_parameters(hyper.kind),
            **hyper.options,
            **EXTRAS[hyper.kind],
            "weight_decay": hyper.weight_decay if matrix else 0.0,
            "lr": rate * fields.pop("lr_scale", 1.0),
            **fields,
        }
        made.setdefault(key, {**group, "params": [], "param_names": []})["param_names"].append(row.torch)
    taken = 0
    for group in made.values():
        group["params"] = list(range(taken, taken + len(group["param_names"])))
        taken += len(group["param_names"])
    return list(made.values())


def from_optimizer_state_dict(
    rows: Sequence[Row], state_dict: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], int | None, list[dict[str, Any]]]:
    """(slots by torch's parameter name, steps taken, groups) of what torch saved; alone or under "optimizer".

    Names are those that the groups carry (`torch.optim.AdamW(model.named_parameters())`); without them the
    parameters of a single group are taken in the order of `rows`. The step is None where nothing says it.

    Raises:
        ConversionError: it is no optimizer's state, or its parameters have no names.
    """
    said = {int(state_dict["step"])} if "step" in state_dict else set()
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    said |= {int(state_dict["step"])} if "step" in state_dict else set()
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
        names[i]: {k: as_numpy(v) for k, v in own.items() if v is not None}
        for i, own in state_dict["state"].items()
    }
    steps = said | {int(own["step"]) for own in slots.values() if "step" in own}
    if len(steps) > 1:
        raise ConversionError(f"the parameters are at different steps: {sorted(steps)}")
    return slots, steps.pop() if steps else None, groups


def check_groups(
    rows: Sequence[Row], params: Mapping[str, Any], hyper: Hyper, groups: Iterable[Mapping]
) -> None:
    """Raise a ConversionError unless torch's groups say of every parameter what `hyper` does; rates may differ."""
    given = {name: g for g in groups for name in g["param_names"]}
    wanted = {name: g for g in param_groups(rows, params, hyper) for name in g["param_names"]}
    check_names(wanted, given)
    free = {"lr", "initial_lr", "params", "param_names", "foreach", "fused", "capturable", "differentiable"}
    for name, group in wanted.items():
        for key, value in group.items():
            if key not in free and key not in given[name]:
                raise ConversionError(f"the optimizer of {name} has no {key}: it is not {hyper.kind}")
            if key not in free and _plain(given[name][key]) != _plain(value):
                raise ConversionError(
                    f"the optimizer's {key} of {name} is {given[name][key]}, the recipe's is {value}"
                )


# -------------------------------------------------------------------------------------------------- shared


def _is_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _walk(node: Any) -> Iterator[Any]:
    """Every state below a node, not looking into those with slots."""
    if _is_tuple(node):
        yield node
        if type(node).__name__ in SLOTS:
            return
    if isinstance(node, tuple | list):
        for child in node:
            yield from _walk(child)
    elif isinstance(node, Mapping):
        for child in node.values():
            yield from _walk(child)


def _is_branch(node: Any) -> bool:
    """Whether several optimizers hang below: updates of a task, groups of parameters."""
    if isinstance(node, Mapping) or (_is_tuple(node) and type(node).__name__ == "GroupState"):
        return True
    return isinstance(node, tuple) and any(type(n).__name__ == "GroupState" for n in _walk(node))


def _units(node: Any) -> Iterator[Any]:
    """The parts that count their steps together."""
    if not _is_branch(node):
        yield node
    else:
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _units(child)


def _replaced(node: Any, renewed: Mapping[int, Any]) -> Any:
    """The tree with its units replaced."""
    if not _is_branch(node):
        return renewed[id(node)]
    if isinstance(node, Mapping):
        return {k: _replaced(v, renewed) for k, v in node.items()}
    children = [_replaced(v, renewed) for v in node]
    return type(node)(*children) if _is_tuple(node) else tuple(children)


def _states(unit: Any) -> list[Any]:
    return [n for n in _walk(unit) if type(n).__name__ in SLOTS]


def _counts(unit: Any) -> list[Any]:
    return [n.count for n in _walk(unit) if "count" in n._fields]


def _paths(states: Iterable[Any]) -> set[str]:
    fields = [getattr(s, field) for s in states for field in SLOTS[type(s).__name__].values()]
    return {path for flat in fields if isinstance(flat, Mapping) for path in flat}


def _is_stepless(slots: Sequence[tuple[str, Any]]) -> bool:
    return len(slots) == 1 and slots[0][0] in STEPLESS


def _check_slots(name: str, slots: Mapping[str, Any], wanted: set[str]) -> None:
    if missing := sorted(wanted - set(slots)):
        raise ConversionError(f"the optimizer state of {name} lacks {missing[0]}: it is another optimizer's")
    if extra := sorted(set(slots) - wanted - {"step"}):
        raise ConversionError(f"the optimizer state of {name} has {extra[0]}: it is another optimizer's")


def _renewed(node: Any, rows: Sequence[Row], state: Mapping[str, Mapping[str, Any]], step: int | None) -> Any:
    """A unit with torch's values."""
    if _is_tuple(node):
        changed: dict[str, Any] = {}
        if "count" in node._fields:
            changed["count"] = jnp.asarray(np.asarray(step), node.count.dtype)
        fields = SLOTS.get(type(node).__name__)
        for slot, field in (fields or {}).items():
            old = getattr(node, field)
            if isinstance(old, Mapping):
                new = from_torch(rows, {r.torch: state[r.torch][slot] for r in rows}, old)
                changed[field] = {k: jnp.asarray(new[k]) for k in old}
            else:
                changed[field] = jnp.asarray(as_numpy(state[rows[0].torch][slot]), old.dtype)
        node = node._replace(**changed)
        if fields is not None:
            return node
        return type(node)(*(_renewed(child, rows, state, step) for child in node))
    return tuple(_renewed(child, rows, state, step) for child in node) if isinstance(node, tuple) else node


def _registered(module: Any, prefix: str = "") -> Iterator[str]:
    """The paths of a module's parameters, its own before its children's, as torch walks them."""
    items = (
        list(enumerate(module)) if isinstance(module, list | tuple | nnx.List) else list(vars(module).items())
    )
    own = [(k, v) for k, v in items if isinstance(v, nnx.Param)]
    yield from (f"{prefix}{k}" for k, _ in own)
    for key, child in items:
        if isinstance(child, nnx.Module | list | tuple | nnx.List):
            yield from _registered(child, f"{prefix}{key}.")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
