"""What torch's `optimizer.state_dict()` says: the slots of every parameter, and its groups with their options."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxarch import nn
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.strict import check_names
from jaxarch.errors import ConversionError, require_torch
from jaxarch.handover.slots import from_torch_optimizer, is_foreign, step_of, to_torch_optimizer
from jaxarch.optim import OPTIMIZERS, hyper_parameters
from jaxarch.optim.named import WITHOUT_EFFECT

__all__ = [
    "Hyper",
    "check_groups",
    "from_optimizer_state_dict",
    "from_torch_optimizer",
    "param_groups",
    "step_of",
    "to_optimizer_state_dict",
    "to_torch_optimizer",
    "torch_rows",
]

# The optimizers that are torch's: the entries of their groups are their arguments.
KINDS = tuple(kind for kind in OPTIMIZERS if kind != "lion")
WITHOUT_DECAY = ("lbfgs", "rprop", "sparseadam")
# Those whose state optax's own optimizers keep in the same form.
FOREIGN_KINDS = ("adam", "adamw", "sgd", "lion")
WRAPPERS = ("optimizer", "optimizer_state_dict")
# Entries of torch's groups that are no options; schedulers add some.
NO_OPTIONS = (
    "params",
    "param_names",
    "initial_lr",
    "swa_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
)


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
    if is_foreign(opt_state) and (hyper.kind not in FOREIGN_KINDS or hyper.options.get("amsgrad")):
        raise ConversionError(
            f"the state is of optax's own optimizer, which is not torch's {hyper.kind}: use jaxarch.optim"
        )
    groups = param_groups(rows, params, hyper, step)

    def tensors(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(tensors, value))
        return as_tensor(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value

    state = {}
    for group in groups:
        for index, name in zip(group["params"], group["param_names"], strict=True):
            if values := slots.get(name, {}):
                state[index] = {k: tensors(v) for k, v in values.items()}
                if "step" in values and hyper.kind != "sparseadam":  # which counts in a Python integer
                    state[index]["step"] = torch.tensor(float(values["step"]), dtype=torch.float32)
    return {"state": state, "param_groups": groups, "step": step}


def param_groups(
    rows: Sequence[Row], params: Mapping[str, Any], hyper: Hyper, step: int = 0
) -> list[dict[str, Any]]:
    """torch's `param_groups` of an optimizer, with names; the learning rate is that of a step.

    Raises:
        ConversionError: a kind, or a group of another kind, that torch cannot hold in a state_dict.
    """
    if hyper.kind not in KINDS:
        raise ConversionError(f"torch has no optimizer {hyper.kind}; it has {', '.join(KINDS)}")
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for row in rows:
        glob = next((g for g in hyper.groups or {} if fnmatch.fnmatchcase(row.path, g)), "")
        fields = dict((hyper.groups or {}).get(glob, {}))
        if fields.pop("optimizer", hyper.kind) != hyper.kind:
            raise ConversionError(f"group {glob!r} has another optimizer: torch keeps one in a state_dict")
        is_matrix = params[row.path].ndim > 1 or hyper.kind in WITHOUT_DECAY
        key = (glob, "weight_decay" in fields or is_matrix)
        rate = fields.pop("learning_rate", hyper.learning_rate)
        rate = _at(rate, step)
        group = {
            **hyper_parameters(hyper.kind),
            **hyper.options,
            "weight_decay": hyper.weight_decay if is_matrix else 0.0,
            "lr": rate * fields.pop("lr_scale", 1.0),
            **fields,
        }
        group = {k: _at(v, step) for k, v in group.items()}
        if hyper.kind == "adamw":
            group["decoupled_weight_decay"] = True
        if hyper.kind in WITHOUT_DECAY:
            del group["weight_decay"]
        if hyper.kind == "lbfgs" and group["max_eval"] is None:
            group["max_eval"] = group["max_iter"] * 5 // 4
        groups.setdefault(key, {**group, "params": [], "param_names": []})["param_names"].append(row.torch)
    first = 0
    for group in groups.values():
        group["params"] = list(range(first, first + len(group["param_names"])))
        first += len(group["param_names"])
    return list(groups.values())


def from_optimizer_state_dict(
    rows: Sequence[Row], state_dict: Mapping[str, Any], *, order: Sequence[str] | None = None
) -> tuple[dict[str, dict[str, Any]], int | None, list[dict[str, Any]]]:
    """(slots by torch's parameter name, steps taken, groups) of what torch saved; alone or under "optimizer".

    Names are those of the groups (`torch.optim.AdamW(model.named_parameters())`); without them the parameters of
    a single group are taken in the order of `rows`. A parameter that torch keeps no state of has {}. The steps are
    the largest of the parameters', and None where nothing gives them.

    Args:
        order: the names of the parameters of all groups, one after another, for groups that do not name them.

    Raises:
        ConversionError: it is not the state of an optimizer of torch's, or its parameters have no names.
    """
    given = [state_dict["step"]] if "step" in state_dict else []
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    given += [state_dict["step"]] if "step" in state_dict else []
    if not isinstance(state_dict.get("state"), Mapping) or not state_dict.get("param_groups"):
        raise ConversionError("this is no optimizer's state_dict: it lacks state or param_groups")
    groups = _named([dict(g) for g in state_dict["param_groups"]], [r.torch for r in rows], order)
    kind_of(groups)
    names = {i: n for g in groups for i, n in zip(g["params"], g["param_names"], strict=True)}
    if unknown_indices := set(state_dict["state"]) - set(names):
        raise ConversionError(f"the optimizer has state of {sorted(unknown_indices)}, which no group holds")
    slots = {name: _arrays(state_dict["state"].get(i, {})) for i, name in names.items()}
    steps = {int(values["step"]) for values in slots.values() if "step" in values}
    step = int(given[0]) if given else max(steps, default=None)
    if len(set(map(int, given))) > 1 or (step is not None and step < max(steps, default=0)):
        raise ConversionError(f"the file says step {given[0]}, the optimizer {max(steps, default=given[-1])}")
    return slots, step, groups


def kind_of(groups: Sequence[Mapping[str, Any]]) -> str:
    """The optimizer whose options torch's groups have.

    Raises:
        ConversionError: none of torch's has.
    """
    options = {k for k in groups[0] if k not in NO_OPTIONS}
    # What torch added to optimizers that had been without.
    late = {*WITHOUT_EFFECT, "maximize"}
    if "amsgrad" in options:
        late.add("decoupled_weight_decay")
    for kind in KINDS:
        known = {"lr", *hyper_parameters(kind)} | ({"weight_decay"} if kind not in WITHOUT_DECAY else set())
        if known - late == options - late:
            is_adam = kind in ("adam", "adamw")
            return ("adamw" if groups[0].get("decoupled_weight_decay") else "adam") if is_adam else kind
    raise ConversionError(f"no optimizer of torch's has the options {', '.join(sorted(options))}")


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
    scheduled = {k for k, v in hyper.options.items() if _at(v, 0) is not v and _at(v, 0) != _as_tuple(v)}
    free = {"lr", "params", "param_names", *WITHOUT_EFFECT, *scheduled}
    for name, group in expected.items():
        for key, value in group.items():
            if key not in free and key not in actual[name]:
                raise ConversionError(f"the optimizer of {name} has no {key}: it is not {hyper.kind}")
            if key not in free and _as_tuple(actual[name][key]) != _as_tuple(value):
                raise ConversionError(
                    f"the optimizer's {key} of {name} is {actual[name][key]}, the recipe's is {value}"
                )


def _named(
    groups: list[dict[str, Any]], rows: list[str], order: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The groups with the names of their parameters.

    Raises:
        ConversionError: nothing gives the names, or not as many as there are parameters.
    """
    if all("param_names" in g for g in groups):
        return groups
    total = sum(len(g["params"]) for g in groups)
    if order is None and len(groups) == 1:
        order = rows
    if order is None or len(order) != total:
        given = "" if order is None else f" {total} parameters, {len(order)} names are given;"
        raise ConversionError(
            f"the optimizer's groups do not name their parameters;{given} make it of model.named_parameters(), "
            "or give their order"
        )
    names = iter(order)
    return [{**g, "param_names": [next(names) for _ in g["params"]]} for g in groups]


def _arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """The slots of a parameter as numpy arrays; lists and Python's numbers stay."""
    is_array = lambda v: hasattr(v, "shape")  # noqa: E731
    return {k: as_numpy(v) if is_array(v) else v for k, v in values.items() if v is not None}


def _at(value: Any, step: int) -> Any:
    """An option at a step: a number in place of an array or of a schedule, alone or within a pair."""
    if isinstance(value, tuple | list):
        return tuple(_at(v, step) for v in value)
    if callable(value):
        return float(value(step))
    return float(value) if hasattr(value, "dtype") else value


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
