"""Optimizers by jaxarch's names: clipping, weight decay of matrices, parameter groups and schedules around torch's.

Parameters are flat dictionaries by path. Weights of two or more dims decay, biases and norms do not, unless a group
sets `weight_decay`.
"""

import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation as Rule

from jaxarch.errors import UsageError, unknown
from jaxarch.optim import named
from jaxarch.optim.checks import check_options
from jaxarch.optim.transformation import Axes, Decays, Transformation, with_standard_promotion
from jaxarch.state import Flat

# The names that recipes use -> torch's: "adamw" -> "AdamW".
TORCH_NAMES = {name.lower(): name for name in (*named.RULES, "LBFGS")}
OPTIMIZERS = tuple(TORCH_NAMES)
GROUP_FIELDS = ("optimizer", "learning_rate", "lr_scale", "weight_decay")
# Arguments of torch's that `create_optimizer` has by another name, or for all groups.
COMMON = ("lr", "weight_decay", "axes")


def clip_by_global_norm(max_norm: float) -> Rule:
    """torch.nn.utils.clip_grad_norm_: scale by max_norm / (norm + 1e-6) where that is below 1."""

    def update(
        updates: Flat, state: optax.EmptyState, params: Flat | None = None
    ) -> tuple[Flat, optax.EmptyState]:
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return Rule(lambda params: optax.EmptyState(), update)


def clip_by_value(max_value: float) -> Rule:
    """torch.nn.utils.clip_grad_value_: every element within [-max_value, max_value]."""
    return optax.clip(max_value)


def decays(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay acts on: those of two or more dims."""
    return {path: x.ndim > 1 for path, x in params.items()}


class GroupState(NamedTuple):
    """The state of each group of parameters, by the group's name."""

    groups: dict[str, Any]


def hyper_parameters(kind: str) -> dict[str, Any]:
    """The options of an optimizer with torch's defaults, beside the learning rate and the weight decay.

    Raises:
        UsageError: unknown kind.
    """
    return {k: v for k, v in _arguments(kind).items() if k not in COMMON}


def create_optimizer(
    kind: str = "adamw",
    *,
    learning_rate: float | Callable[[Any], Any] | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    max_grad_value: float = 0.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    axes: Axes | None = None,
    **options: Any,
) -> Transformation:
    """Clipping by value and then by global norm (0: none), then torch's optimizer of the name `kind`.

    AdamW, Adafactor, Lion and Muon decouple the weight decay; the others add `weight_decay` times the parameter to
    the gradient, as torch does. It acts on parameters of two or more dims.

    Args:
        kind: one of OPTIMIZERS.
        learning_rate: a number, or a schedule: a function of the step.
        groups: glob of paths -> what differs for these parameters: `learning_rate`, or `lr_scale`, a factor of
            the common one; `weight_decay`, which then acts on all of them; `optimizer`, another kind; any
            option. The first glob that matches a path applies.
        axes: for Adafactor and Muon, path -> the permutation from torch's axes to JAX's; see `optim.Adafactor`.
        options: torch's further arguments: `betas`, `eps`, `momentum`, `nesterov`, `amsgrad`, ... (see
            `hyper_parameters`). Each number may be a schedule (OneCycle's momentum).

    Raises:
        UsageError: unknown kind or option, no learning rate, a value of the wrong type or out of range; at `init`:
            a glob that matches nothing, or a parameter that the optimizer does not take.
    """
    if learning_rate is None:
        raise UsageError(f"{kind} needs a learning_rate")
    base: dict[str, Any] = {
        "optimizer": kind,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "options": options,
        "mask": lambda path, x: x.ndim > 1,
        "axes": axes,
    }
    if kind == "lbfgs" and (groups or max_grad_norm or max_grad_value):
        raise UsageError(
            "lbfgs has neither groups nor clipping: set max_grad_norm to 0 and leave out the others"
        )
    rule = _grouped(groups, base) if groups else _rule(**base)
    clips = [clip_by_value(max_grad_value)] if max_grad_value > 0 else []
    clips += [clip_by_global_norm(max_grad_norm)] if max_grad_norm > 0 else []
    return with_standard_promotion(optax.chain(*clips, rule) if clips else rule)


def _rule(
    optimizer: str,
    learning_rate: float | Callable[[Any], Any],
    weight_decay: float,
    options: Mapping[str, Any],
    mask: Decays | None,
    axes: Axes | None,
) -> Transformation:
    """The optimizer of one group of parameters."""
    arguments = _arguments(optimizer)
    for option in options:
        if option not in (known := hyper_parameters(optimizer)):
            raise unknown(f"option of {optimizer}", option, known)
    check_options(optimizer, {"lr": learning_rate}, {"lr": "learning_rate"})
    arguments |= {"lr": learning_rate, **options}
    if "weight_decay" in arguments:
        arguments["weight_decay"] = weight_decay
    elif callable(weight_decay) or weight_decay != 0:
        raise UsageError(f"{optimizer} has no weight decay: set weight_decay to 0")
    has_axes = "axes" in arguments
    arguments.pop("axes", None)
    return named.build(TORCH_NAMES[optimizer], arguments, mask, axes if has_axes else None)


def _arguments(kind: str) -> dict[str, Any]:
    """All arguments of an optimizer with torch's defaults."""
    if kind not in OPTIMIZERS:
        raise unknown("optimizer", kind, OPTIMIZERS)
    parameters = inspect.signature(getattr(named, TORCH_NAMES[kind])).parameters.values()
    return {p.name: p.default for p in parameters}


def _grouped(groups: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> Rule:
    """One rule for each group; parameters that no glob matches take the common one."""
    rules = [_rule(**_group(glob, fields, base)) for glob, fields in groups.items()]
    rules.append(_rule(**base))

    def split(values: Flat) -> dict[str, tuple[Rule, Flat]]:
        parts: list[Flat] = [{} for _ in rules]
        for path, x in values.items():
            parts[next((i for i, glob in enumerate(groups) if fnmatch.fnmatchcase(path, glob)), -1)][path] = x
        for glob, part in zip(groups, parts, strict=False):
            if not part:
                raise UsageError(f"group {glob!r} matches no parameter, or none that a group before it left")
        return {
            f"group{i}": (rule, part) for i, (rule, part) in enumerate(zip(rules, parts, strict=True)) if part
        }

    def init(params: Flat) -> GroupState:
        return GroupState({name: rule.init(part) for name, (rule, part) in split(params).items()})

    def update(updates: Flat, state: GroupState, params: Flat | None = None) -> tuple[Flat, GroupState]:
        new_updates, new_states = {}, {}
        for name, (rule, part) in split(updates).items():
            group_params = None if params is None else {path: params[path] for path in part}
            group_updates, new_states[name] = rule.update(part, state.groups[name], group_params)
            new_updates.update(group_updates)
        return {path: new_updates[path] for path in updates}, GroupState(new_states)

    return Rule(init, update)


def _group(glob: str, fields: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a group's rule: the common ones with what the group's fields change."""
    kind = fields.get("optimizer", base["optimizer"])
    for field in fields:
        if field not in (known := (*GROUP_FIELDS, *hyper_parameters(kind))):
            raise unknown(f"field of group {glob}", field, known)
    if "learning_rate" in fields and "lr_scale" in fields:
        raise UsageError(f"group {glob}: give learning_rate or lr_scale, not both")
    rate = fields.get("learning_rate", base["learning_rate"])
    if (scale := fields.get("lr_scale")) is not None:
        common = rate
        rate = (lambda step: scale * common(step)) if callable(common) else scale * common
    options = {k: v for k, v in fields.items() if k not in GROUP_FIELDS}
    return {
        "optimizer": kind,
        "learning_rate": rate,
        "weight_decay": fields.get("weight_decay", base["weight_decay"]),
        "options": {**(base["options"] if kind == base["optimizer"] else {}), **options},
        "mask": None if "weight_decay" in fields else base["mask"],
        "axes": base["axes"],
    }
