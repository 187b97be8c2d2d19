"""An optimizer's state between optax and torch.optim's slots: the rows that convert weights convert moments too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.convert.strict import check_names
from jaxarch.errors import ConversionError
from jaxarch.handover import lbfgs
from jaxarch.optim.lbfgs import LBFGSState
from jaxarch.optim.optimizer import GroupState
from jaxarch.optim.transformation import OptimizerState

# A state of optax's own that means what torch's does -> torch's slot -> its field.
FOREIGN: dict[type, dict[str, str]] = {
    optax.ScaleByAdamState: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    optax.TraceState: {"momentum_buffer": "trace"},
    optax.ScaleByLionState: {"exp_avg": "mu"},
}
# States of optax's own that look like torch's and mean something else.
OTHER = {
    "ScaleByAmsgradState": "optax takes the maximum after the correction, torch before it: use optim.Adam",
    "ScaleByRmsState": "optax counts no steps of it: use optim.RMSprop",
    "ScaleByRStdDevState": "optax counts no steps of it: use optim.RMSprop",
    "ScaleByRssState": "optax counts no steps of it: use optim.Adagrad",
}
# Where one of these is the only slot, the optimizer is SGD, Muon or Lion, of which torch keeps no step.
STEPLESS = ("momentum_buffer", "exp_avg")
# torch's parameter name -> slot -> value
TorchState = Mapping[str, Mapping[str, Any]]


def to_torch_optimizer(rows: Iterable[Row], opt_state: Any) -> dict[str, dict[str, Any]]:
    """The state of an optimizer as torch.optim keeps it, by torch's parameter names.

    Args:
        rows: in torch's order, which L-BFGS needs; see `torch_rows`.

    Returns:
        torch's name -> {"step", "exp_avg", "exp_avg_sq", ...}, arrays in torch's layout; {} for an optimizer
        without state. A parameter that has taken no step though others have is missing, as in torch.

    Raises:
        ConversionError: a parameter has two states that torch keeps under one name, or the state is none of
            torch's optimizers'.
    """
    rows = [r for r in rows if r.trainable]
    torch_state: dict[str, dict[str, Any]] = {}
    for single in _single_states(opt_state):
        for state in _slot_states(single):
            if isinstance(state, LBFGSState):
                new = lbfgs.to_torch_slots(rows, state)
            elif isinstance(state, OptimizerState):
                new = _own_slots(rows, state)
            else:
                new = _foreign_slots(rows, state, step_of(single))
            for name, slots in new.items():
                for slot in slots:
                    if slot in torch_state.get(name, {}) and slot != "step":
                        raise ConversionError(f"{name} has two states of the name {slot}")
                torch_state.setdefault(name, {}).update(slots)
    return {r.torch: torch_state[r.torch] for r in rows if r.torch in torch_state}


def from_torch_optimizer(
    rows: Iterable[Row], state: TorchState, opt_state: Any, *, step: int | None = None
) -> Any:
    """`opt_state` with torch's slots and steps, from which schedules continue.

    Args:
        state: torch's parameter name -> slots, for example {"step", "exp_avg", "exp_avg_sq"}; {} for a parameter
            that torch keeps no state of, which begins anew. Floats are cast to the dtypes of `opt_state`.
        opt_state: a state of the optimizer to continue with, for its structure, shapes and dtypes.
        step: the number of steps taken, for SGD, Lion and Muon, whose state does not hold it; for others the
            largest of the parameters'.

    Raises:
        ConversionError: names, slots or shapes differ, no step is known, or the state cannot hold the steps.
    """
    rows = [r for r in rows if r.trainable]
    singles = list(_single_states(opt_state))
    states = [s for single in singles for s in _slot_states(single)]
    paths = {p for s in states for p in _paths(s)}
    given = [k for k, slots in state.items() if slots or paths]
    check_names([r.torch for r in rows if r.path in paths], given)
    new_states = {}
    for single in singles:
        single_paths = {p for s in _slot_states(single) for p in _paths(s)}
        single_rows = [r for r in rows if r.path in single_paths]
        if any(isinstance(s, LBFGSState) for s in _slot_states(single)):
            new_states[id(single)] = _with_lbfgs(single, single_rows, state, step)
            continue
        _check_slots(single_rows, state, _slot_states(single))
        own = {int(state[r.torch]["step"]) for r in single_rows if "step" in state[r.torch]}
        single_step = step if step is not None else max(own, default=None)
        if own and single_step is not None and single_step < max(own):
            raise ConversionError(
                f"the parameters are at step {max(own)}, beyond the {single_step} steps taken"
            )
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


def is_foreign(opt_state: Any) -> bool:
    """Whether a state is of optax's own optimizers, whose kind it does not tell."""
    return any(type(s) in FOREIGN for single in _single_states(opt_state) for s in _slot_states(single))


# ------------------------------------------------------------------------------------------- to torch


def _own_slots(rows: Sequence[Row], state: OptimizerState) -> dict[str, dict[str, Any]]:
    paths = _paths(state)
    scalars = {k: np.asarray(v) for k, v in state.scalars.items()}
    by_path = {r.path: r for r in rows if r.path in paths}
    begun = bool(scalars["step"].any())
    slots: dict[str, dict[str, Any]] = {}
    for i, path in enumerate(paths):
        if path not in by_path or (begun and not scalars["step"][i]):
            continue
        row = by_path[path]
        own = {slot: to_torch([row], tree)[row.torch] for slot, tree in state.slots.items() if path in tree}
        numbers = {k: int(v[i]) if k == "step" else v[i] for k, v in scalars.items()}
        slots[row.torch] = own if _is_stepless(own) else {**numbers, **own}
    return slots


def _foreign_slots(rows: Sequence[Row], state: Any, step: int) -> dict[str, dict[str, Any]]:
    fields = FOREIGN[type(state)]
    start: dict[str, Any] = {} if _is_stepless(fields) else {"step": step}
    return {
        r.torch: {**start, **{k: to_torch([r], getattr(state, f))[r.torch] for k, f in fields.items()}}
        for r in rows
        if r.path in _paths(state)
    }


def _is_stepless(slots: Iterable[str]) -> bool:
    return len(names := list(slots)) == 1 and names[0] in STEPLESS


# ----------------------------------------------------------------------------------------- from torch


def _check_slots(rows: Sequence[Row], state: TorchState, states: Sequence[Any]) -> None:
    """Check that each parameter has the slots of its optimizer's state, or none."""
    for row in rows:
        expected = set()
        for s in states:
            if isinstance(s, OptimizerState):
                expected |= {slot for slot, tree in s.slots.items() if row.path in tree}
                expected |= set(s.scalars) - {"step"}
            else:
                expected |= set(FOREIGN[type(s)])
        actual = set(state[row.torch]) - {"step"}
        if not actual and all(isinstance(s, OptimizerState) for s in states):
            if any(int(s.count) for s in states):
                raise ConversionError(
                    f"torch keeps no state of {row.torch}: give the state of optimizer.init"
                )
            continue
        if missing := sorted(expected - actual):
            raise ConversionError(
                f"the optimizer state of {row.torch} lacks {missing[0]}: it is another optimizer's"
            )
        if extra := sorted(actual - expected):
            raise ConversionError(
                f"the optimizer state of {row.torch} has {extra[0]}: it is another optimizer's"
            )


def _with_values(node: Any, rows: Sequence[Row], state: TorchState, step: int | None) -> Any:
    """A single optimizer's state with torch's values."""
    if isinstance(node, OptimizerState):
        return _with_own_values(node, rows, state, step or 0)
    if not _is_namedtuple(node):
        return tuple(_with_values(n, rows, state, step) for n in node) if isinstance(node, tuple) else node
    values: dict[str, Any] = {}
    if "count" in node._fields:
        own = {int(state[r.torch]["step"]) for r in rows if "step" in state[r.torch]}
        if len(own) > 1:
            raise ConversionError(
                f"the parameters are at different steps {sorted(own)}, optax has one: use jaxarch.optim"
            )
        values["count"] = jnp.asarray(np.asarray(step), node.count.dtype)
    for slot, field in FOREIGN.get(type(node), {}).items():
        values[field] = _taken(rows, state, slot, getattr(node, field))
    node = node._replace(**values)
    return node if type(node) in FOREIGN else type(node)(*(_with_values(n, rows, state, step) for n in node))


def _with_own_values(
    node: OptimizerState, rows: Sequence[Row], state: TorchState, step: int
) -> OptimizerState:
    names = {r.path: r.torch for r in rows}
    paths = _paths(node)
    slots = {
        slot: {**tree, **_taken([r for r in rows if slot in state[r.torch]], state, slot, tree)}
        for slot, tree in node.slots.items()
    }
    scalars = {}
    for name, old in node.scalars.items():
        numbers = np.array(old)
        for i, path in enumerate(paths):
            values = state[names[path]]
            if values and (name in values or name == "step"):
                numbers[i] = as_numpy(values.get(name, step))
        # Without slots there are no paths: all parameters are at the optimizer's step.
        scalars[name] = jnp.asarray(numbers if paths else np.full_like(numbers, step), old.dtype)
    return OptimizerState(jnp.asarray(np.asarray(step), node.count.dtype), scalars, slots)


def _taken(rows: Sequence[Row], state: TorchState, slot: str, old: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a slot by path, of the rows that have it."""
    rows = [r for r in rows if r.path in old]
    like = {r.path: old[r.path] for r in rows}
    new = from_torch(rows, {r.torch: state[r.torch][slot] for r in rows}, like)
    return {path: jnp.asarray(value) for path, value in new.items()}


def _with_lbfgs(single: Any, rows: Sequence[Row], state: TorchState, step: int | None) -> Any:
    if not isinstance(single, LBFGSState):
        raise ConversionError("L-BFGS is handed over alone, not within a chain")
    if step is None:
        raise ConversionError("the optimizer state does not say its step: give the steps taken")
    return lbfgs.from_torch_slots(rows, state, single, step)


# -------------------------------------------------------------------------------------------- shared


def _is_namedtuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _has_slots(node: Any) -> bool:
    return isinstance(node, OptimizerState | LBFGSState) or type(node) in FOREIGN


def _walk(node: Any) -> Iterator[Any]:
    """Every state below a node; states with slots are not descended into.

    Raises:
        ConversionError: a state with arrays by path that is none of torch's optimizers'.
    """
    if _is_namedtuple(node):
        name = type(node).__name__
        holds = any(isinstance(x, Mapping) and any(hasattr(v, "dtype") for v in x.values()) for x in node)
        if holds and not _has_slots(node):
            reason = OTHER.get(name, "no optimizer of torch's has it: use one of jaxarch.optim")
            raise ConversionError(f"the optimizer's state is an {name}: {reason}")
        yield node
        if _has_slots(node):
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
    return [n for n in _walk(single) if _has_slots(n)]


def _counts(opt_state: Any) -> list[Any]:
    return [n.count for n in _walk(opt_state) if "count" in n._fields]


def _paths(state: Any) -> list[str]:
    """The paths of the parameters of a state, in the order of its leaves; none where it has no slots."""
    if isinstance(state, LBFGSState):
        trees = [state.d]
    elif isinstance(state, OptimizerState):
        trees = list(state.slots.values())
    else:
        trees = [getattr(state, field) for field in FOREIGN[type(state)].values()]
    return sorted({path for tree in trees for path in tree})
