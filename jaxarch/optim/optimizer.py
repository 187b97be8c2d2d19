"""Optimizers by torch.optim's names: clipping, weight decay, parameter groups and schedules around one rule.

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
from jaxarch.optim.rules import RULES
from jaxarch.state import Flat

OPTIMIZERS = tuple(RULES)
GROUP_FIELDS = ("optimizer", "learning_rate", "lr_scale", "weight_decay")


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


class ScheduledState(NamedTuple):
    """The state of a rule some of whose options are schedules."""

    count: Any  # type: ignore[assignment]  # it hides tuple.count
    inner: Any


class GroupState(NamedTuple):
    """The state of each group of parameters, by the group's name."""

    groups: dict[str, Any]


def hyper_parameters(kind: str) -> dict[str, Any]:
    """The options of an optimizer with torch's defaults.

    Raises:
        UsageError: unknown kind.
    """
    if kind not in OPTIMIZERS:
        raise unknown("optimizer", kind, OPTIMIZERS)
    parameters = inspect.signature(RULES[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("decay", "decoupled")}


def create_optimizer(
    kind: str = "adamw",
    *,
    learning_rate: float | Callable[[Any], Any] | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    max_grad_value: float = 0.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Rule:
    """Clipping by value and then by global norm (0: none), then torch's optimizer of the name `kind`.

    AdamW, Lion and Muon decouple the weight decay; the others add `weight_decay` times the parameter to the gradient,
    as torch does. It acts on parameters of two or more dims.

    Args:
        kind: one of OPTIMIZERS.
        learning_rate: a number, or a schedule: a function of the step.
        groups: glob of paths -> what differs for these parameters: `learning_rate`, or `lr_scale`, a factor of
            the common one; `weight_decay`, which then acts on all of them; `optimizer`, another kind; any
            option. The first glob that matches a path applies.
        options: torch's further arguments: `betas`, `eps`, `momentum`, `nesterov`, `amsgrad`, ... (see
            `hyper_parameters`). A momentum or beta may be a schedule (OneCycle's).

    Raises:
        UsageError: unknown kind or option, no learning rate, a value out of range; at `init`: a glob that matches
            nothing, or a parameter that the optimizer does not take.
    """
    if learning_rate is None:
        raise UsageError(f"{kind} needs a learning_rate")
    base: dict[str, Any] = {
        "optimizer": kind,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "options": options,
        "mask": decays,
    }
    rule = _grouped(groups, base) if groups else _rule(**base)
    clips = [clip_by_value(max_grad_value)] if max_grad_value > 0 else []
    clips += [clip_by_global_norm(max_grad_norm)] if max_grad_norm > 0 else []
    return with_standard_promotion(optax.chain(*clips, rule) if clips else rule)


def with_standard_promotion(rule: Rule) -> Rule:
    """The rule under standard dtype promotion: optax mixes int32 counts with floats, which strict promotion refuses."""

    def update(updates: Flat, state: Any, params: Flat | None = None) -> tuple[Flat, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return rule.update(updates, state, params)

    return Rule(rule.init, update)


def _rule(
    optimizer: str,
    learning_rate: float | Callable[[Any], Any],
    weight_decay: float,
    options: Mapping[str, Any],
    mask: Callable[[Flat], dict[str, bool]] | None,
) -> Rule:
    """The update rule of one group of parameters, with weight decay and the learning rate."""
    known = hyper_parameters(optimizer)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {optimizer}", option, known)
        _check_range(optimizer, option, value)
    _check_range(optimizer, "learning_rate", learning_rate)
    _check_range(optimizer, "weight_decay", weight_decay)

    def make(options: Mapping[str, Any]) -> Rule:
        return RULES[optimizer](optax.add_decayed_weights(weight_decay, mask=mask), **options)

    # A constant rate is a schedule too, so that every state counts its steps.
    schedule = learning_rate if callable(learning_rate) else lambda _: learning_rate
    rule = _scheduled(make, options) if any(map(_has_schedule, options.values())) else make(options)
    return optax.chain(rule, optax.scale_by_learning_rate(schedule))


def _scheduled(make: Callable[[Mapping[str, Any]], Rule], options: Mapping[str, Any]) -> Rule:
    """The rule whose options take their schedules' values at each step."""

    def rule_at(step: jax.Array) -> Rule:
        value = lambda v: v(step) if callable(v) else v  # noqa: E731
        return make(
            {k: tuple(map(value, v)) if isinstance(v, tuple | list) else value(v) for k, v in options.items()}
        )

    def init(params: Flat) -> ScheduledState:
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, rule_at(count).init(params))

    def update(
        updates: Flat, state: ScheduledState, params: Flat | None = None
    ) -> tuple[Flat, ScheduledState]:
        new = rule_at(state.count).update(updates, state.inner, params)
        # A schedule's value has a dtype of its own, to which parameters of fewer bits would be promoted.
        updates, inner = jax.tree.map(lambda x, old: x.astype(old.dtype), new, (updates, state.inner))
        return updates, ScheduledState(state.count + 1, inner)

    return Rule(init, update)


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
    }


def _has_schedule(value: Any) -> bool:
    return any(map(callable, value)) if isinstance(value, tuple | list) else callable(value)


def _check_range(optimizer: str, option: str, value: Any) -> None:
    """Check numbers as torch does; traced values and schedules cannot be checked."""
    numbers = [v for v in (value if isinstance(value, tuple | list) else [value]) if type(v) in (int, float)]
    if option == "betas":
        if len(value) != 2 or not all(0 <= v < 1 for v in numbers):
            raise UsageError(f"{optimizer}: betas must be two numbers in [0, 1), not {value}")
    elif option not in ("ns_coefficients", "dampening") and any(v < 0 for v in numbers):
        raise UsageError(f"{optimizer}: {option} must not be negative, not {value}")
