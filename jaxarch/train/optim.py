"""Optimizers as optax transformations that take torch.optim's steps, under torch's names and defaults.

Parameters are flat dictionaries by path. optax's own rule is used where it is torch's: momentum, Adam, Adamax,
RMSprop, Lion. Weights of two or more dimensions decay, biases and norms do not, unless a group says more.
"""

import fnmatch
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation as Rule

from jaxarch.errors import UsageError, unknown
from jaxarch.spec import Page
from jaxarch.train.schedules import SCHEDULES, create_schedule

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "clip_by_global_norm",
    "clip_by_value",
    "create_optimizer",
    "create_schedule",
    "decays",
    "hyper_parameters",
]

GROUP_FIELDS = ("optimizer", "learning_rate", "lr_scale", "weight_decay")


def clip_by_global_norm(max_norm: float) -> Rule:
    """torch.nn.utils.clip_grad_norm_: scale by max_norm / (norm + 1e-6) where that is below 1."""

    def update(updates, state, params=None):
        scale = jnp.minimum(max_norm / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return Rule(lambda params: optax.EmptyState(), update)


def clip_by_value(max_value: float) -> Rule:
    """torch.nn.utils.clip_grad_value_: every element within [-max_value, max_value]."""
    return optax.clip(max_value)


def decays(params: Mapping[str, Any]) -> dict[str, bool]:
    """Which parameters weight decay acts on: those of two or more dimensions."""
    return {path: x.ndim > 1 for path, x in params.items()}


# --------------------------------------------------------------------------------------------------- rules


class DampenedState(NamedTuple):
    """`trace` is torch's momentum_buffer; `count` tells the first step, which dampening leaves alone."""

    count: Any  # type: ignore[assignment]  # as optax calls it; it hides tuple.count
    trace: dict[str, Any]


class AdamaxState(NamedTuple):
    """optax's state of Adamax under a name of its own, so that it is not taken for Adam's."""

    count: Any  # type: ignore[assignment]
    mu: dict[str, Any]
    nu: dict[str, Any]


class NadamState(NamedTuple):
    """Adam's moments and the product of the momenta, which torch keeps in float32."""

    count: Any  # type: ignore[assignment]
    mu: dict[str, Any]
    nu: dict[str, Any]
    mu_product: jax.Array


class AdagradState(NamedTuple):
    """The sum of the squares so far."""

    count: Any  # type: ignore[assignment]
    sum_of_squares: dict[str, Any]


class MuonState(NamedTuple):
    """`trace` is torch's momentum_buffer."""

    trace: dict[str, Any]


class ScheduledState(NamedTuple):
    """The state of a rule some of whose options are schedules."""

    count: Any  # type: ignore[assignment]
    inner: Any


class GroupState(NamedTuple):
    """The state of each group of parameters, by the group's name."""

    groups: dict[str, Any]


def _sgd(decay: Rule, momentum: Any = 0.0, dampening: Any = 0.0, nesterov: bool = False) -> Rule:
    if nesterov and (_is_zero(momentum) or not _is_zero(dampening)):
        raise UsageError("nesterov needs a momentum and no dampening")
    if _is_zero(momentum):
        return decay
    traced = optax.trace(momentum, nesterov) if _is_zero(dampening) else _dampened(momentum, dampening)
    return optax.chain(decay, traced)


def _dampened(momentum, dampening) -> Rule:
    def init(params):
        return DampenedState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        new = jnp.where(state.count == 0, 1.0, 1 - dampening)
        trace = jax.tree.map(lambda t, g: momentum * t + _as(new, g) * g, state.trace, updates)
        return trace, DampenedState(state.count + 1, trace)

    return Rule(init, update)


def _adam(
    decay: Rule, betas: Any = (0.9, 0.999), eps: Any = 1e-8, amsgrad: bool = False, decoupled: bool = False
) -> Rule:
    b1, b2 = betas
    moments = _amsgrad(b1, b2, eps) if amsgrad else optax.scale_by_adam(b1, b2, eps=eps)
    return optax.chain(moments, decay) if decoupled else optax.chain(decay, moments)


def _adamw(decay: Rule, betas: Any = (0.9, 0.999), eps: Any = 1e-8, amsgrad: bool = False) -> Rule:
    return _adam(decay, betas, eps, amsgrad, decoupled=True)


def _amsgrad(b1, b2, eps) -> Rule:
    """optax corrects the second moment's bias before it takes the maximum, torch after."""
    inner = optax.scale_by_amsgrad(b1, b2, eps)

    def update(updates, state, params=None):
        mu, nu, count = _moments(updates, state, b1, b2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        c1, c2 = 1 - b1**count, jnp.sqrt(1 - b2**count)
        steps = jax.tree.map(lambda m, v: m / _as(c1, m) / (jnp.sqrt(v) / _as(c2, v) + eps), mu, nu_max)
        return steps, optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    return Rule(inner.init, update)


def _nadam(
    decay: Rule,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    momentum_decay: Any = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Rule:
    b1, b2 = betas

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return NadamState(
            jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), jnp.ones((), jnp.float32)
        )

    def update(updates, state, params=None):
        mu, nu, count = _moments(updates, state, b1, b2)
        at = count.astype(jnp.result_type(float))
        now, after = (b1 * (1 - 0.5 * 0.96 ** (s * momentum_decay)) for s in (at, at + 1))
        product = state.mu_product * now.astype(jnp.float32)
        wide = product.astype(at.dtype)
        own, past, c2 = (1 - now) / (1 - wide), after / (1 - wide * after), 1 - b2**count

        def step(m, v, g):
            root = jnp.sqrt(v / _as(c2, v)) + eps
            return _as(own, g) * g / root + _as(past, m) * m / root

        return jax.tree.map(step, mu, nu, updates), NadamState(count, mu, nu, product)

    rule = Rule(init, update)
    return optax.chain(rule, decay) if decoupled_weight_decay else optax.chain(decay, rule)


def _radam(
    decay: Rule, betas: Any = (0.9, 0.999), eps: Any = 1e-8, decoupled_weight_decay: bool = False
) -> Rule:
    b1, b2 = betas

    def update(updates, state, params=None):
        mu, nu, count = _moments(updates, state, b1, b2)
        at = count.astype(jnp.result_type(float))
        c1, c2 = 1 - b1**count, 1 - b2**count
        limit = 2 / (1 - b2) - 1
        length = limit - 2 * at * b2**at / c2
        ratio = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
        factor = jnp.sqrt(jnp.maximum(ratio, 0) * c2)

        def step(m, v):
            mean = m / _as(c1, m)
            return jnp.where(length > 5, mean * _as(factor, m) / (jnp.sqrt(v) + eps), mean)

        return jax.tree.map(step, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    rule = Rule(optax.scale_by_radam().init, update)
    return optax.chain(rule, decay) if decoupled_weight_decay else optax.chain(decay, rule)


def _adamax(decay: Rule, betas: Any = (0.9, 0.999), eps: Any = 1e-8) -> Rule:
    inner = optax.scale_by_adamax(*betas, eps=eps)

    def update(updates, state, params=None):
        updates, state = inner.update(updates, optax.ScaleByAdamState(*state), params)
        return updates, AdamaxState(*state)

    return optax.chain(decay, Rule(lambda params: AdamaxState(*inner.init(params)), update))


def _adagrad(
    decay: Rule, lr_decay: Any = 0.0, initial_accumulator_value: Any = 0.0, eps: Any = 1e-10
) -> Rule:
    def init(params):
        return AdagradState(jnp.zeros((), jnp.int32), optax.tree.full_like(params, initial_accumulator_value))

    def update(updates, state, params=None):
        total = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        scale = 1 / (1 + state.count * lr_decay)
        steps = jax.tree.map(lambda s, g: _as(scale, g) * g / (jnp.sqrt(s) + eps), total, updates)
        return steps, AdagradState(state.count + 1, total)

    return optax.chain(decay, Rule(init, update))


def _rmsprop(
    decay: Rule, alpha: Any = 0.99, eps: Any = 1e-8, momentum: Any = 0.0, centered: bool = False
) -> Rule:
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    rules = [decay, scale(decay=alpha, eps=eps, eps_in_sqrt=False)]
    return optax.chain(*rules, *([] if _is_zero(momentum) else [optax.trace(momentum)]))


def _lion(decay: Rule, betas: Any = (0.9, 0.99)) -> Rule:
    return optax.chain(optax.scale_by_lion(*betas), decay)


def _muon(
    decay: Rule,
    momentum: Any = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: Any = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> Rule:
    """torch.optim.Muon of weights (in, out), in their own precision where torch rounds to bfloat16."""
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise unknown("adjust_lr_fn", adjust_lr_fn, ("original", "match_rms_adamw"))
    a, b, c = ns_coefficients

    def init(params):
        for path, x in params.items():
            if x.ndim != 2:
                raise UsageError(f"Muon takes matrices only: give {path} another optimizer in a group")
        return MuonState(optax.tree.zeros_like(params))

    def orthogonal(x):
        wide = x if x.shape[0] <= x.shape[1] else x.T
        wide = wide / jnp.maximum(jnp.linalg.norm(wide), eps)
        for _ in range(ns_steps):
            gram = wide @ wide.T
            wide = a * wide + (b * gram + c * gram @ gram) @ wide
        return wide if x.shape[0] <= x.shape[1] else wide.T

    def ratio(x):
        fan_in, fan_out = x.shape
        if adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(fan_in, fan_out))
        return math.sqrt(max(1, fan_out / fan_in))

    def update(updates, state, params=None):
        trace = jax.tree.map(lambda t, g: t + (1 - momentum) * (g - t), state.trace, updates)
        ahead = jax.tree.map(lambda t, g: g + momentum * (t - g), trace, updates) if nesterov else trace
        return jax.tree.map(lambda x: ratio(x) * orthogonal(x), ahead), MuonState(trace)

    return optax.chain(Rule(init, update), decay)


RULES: dict[str, Callable[..., Rule]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "nadam": _nadam,
    "radam": _radam,
    "adamax": _adamax,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "lion": _lion,
    "muon": _muon,
}
OPTIMIZERS = tuple(RULES)


def hyper_parameters(kind: str) -> dict[str, Any]:
    """The options of an optimizer and torch's defaults for them.

    Raises:
        UsageError: unknown kind.
    """
    if kind not in RULES:
        raise unknown("optimizer", kind, OPTIMIZERS)
    parameters = inspect.signature(RULES[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("decay", "decoupled")}


def create_optimizer(
    kind: str | Page = "adamw",
    *,
    learning_rate: float | Callable[[Any], Any] | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 0.0,
    max_grad_value: float = 0.0,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Rule:
    """Clipping by value and then by global norm (0: none), then torch's optimizer of the name `kind`.

    All but AdamW, Lion and Muon add `weight_decay` times the parameter to the gradient, as torch does; those
    decouple it. It acts on parameters of two or more dimensions.

    Args:
        kind: a name of OPTIMIZERS; or a page, whose recipe then says everything, its schedule included.
        learning_rate: a number, or a schedule of the step.
        groups: glob of paths -> what differs for these parameters: `learning_rate`, or `lr_scale`, a factor of
            the common one; `weight_decay`, which then acts on all of them; `optimizer`, another kind; any
            option. The first glob that matches counts.
        options: torch's further arguments: `betas`, `eps`, `momentum`, `nesterov`, `amsgrad`, ... (see
            `hyper_parameters`). A momentum or beta may be a schedule of the step (OneCycle's).

    Raises:
        UsageError: unknown kind or option, a value out of range; when the state is made: a glob that matches
            nothing, or a parameter that the optimizer does not take. A page whose recipe has several optimizers,
            or that comes with arguments of its own; a name without a learning rate.
    """
    if isinstance(kind, Page):
        if learning_rate is not None or weight_decay or max_grad_norm or max_grad_value or groups or options:
            raise UsageError(f"the recipe of {kind.name} says what its optimizer is: give the page alone")
        return _of_page(kind)
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
    return _promoting(optax.chain(*clips, rule) if clips else rule)


def _of_page(page: Page) -> Rule:
    from jaxarch.train import loop, tasks

    recipe, *_ = loop.recipe_of(page.name, None, {})
    task = tasks.task(recipe.task, label_smoothing=recipe.label_smoothing or 0.0, **recipe.task_options)
    made = loop.optimizers_of(recipe, task)
    if len(made) > 1:
        raise UsageError(
            f"{page.name} has an optimizer for each of {', '.join(made)}: train.loop.optimizers_of gives them"
        )
    return next(iter(made.values()))


def _rule(
    optimizer: str, learning_rate: Any, weight_decay: Any, options: Mapping[str, Any], mask: Any
) -> Rule:
    known = hyper_parameters(optimizer)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {optimizer}", option, known)
        _check_range(optimizer, option, value)
    _check_range(optimizer, "learning_rate", learning_rate)
    _check_range(optimizer, "weight_decay", weight_decay)

    def make(given: Mapping[str, Any]) -> Rule:
        return RULES[optimizer](optax.add_decayed_weights(weight_decay, mask=mask), **given)

    # A constant rate counts its steps too, so that every state knows its step.
    rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
    steps = _scheduled(make, options) if any(map(_has_schedule, options.values())) else make(options)
    return optax.chain(steps, optax.scale_by_learning_rate(rate))


def _scheduled(make: Callable[[Mapping[str, Any]], Rule], options: Mapping[str, Any]) -> Rule:
    """The rule with the options of the step at hand."""

    def now(count):
        value = lambda v: v(count) if callable(v) else v  # noqa: E731
        return {
            k: tuple(map(value, v)) if isinstance(v, tuple | list) else value(v) for k, v in options.items()
        }

    def init(params):
        count = jnp.zeros((), jnp.int32)
        return ScheduledState(count, make(now(count)).init(params))

    def update(updates, state, params=None):
        steps, inner = make(now(state.count)).update(updates, state.inner, params)
        # A number from a schedule has a dtype, and would lend it to parameters of fewer bits.
        steps, inner = jax.tree.map(
            lambda new, old: new.astype(old.dtype), (steps, inner), (updates, state.inner)
        )
        return steps, ScheduledState(state.count + 1, inner)

    return Rule(init, update)


def _grouped(groups: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]) -> Rule:
    """One rule for each group; what no glob matches takes the common one."""
    rules = [_rule(**_group(glob, fields, base)) for glob, fields in groups.items()]
    rules.append(_rule(**base))

    def split(tree):
        parts: list[dict[str, Any]] = [{} for _ in rules]
        for path, x in tree.items():
            parts[next((i for i, glob in enumerate(groups) if fnmatch.fnmatchcase(path, glob)), -1)][path] = x
        for glob, part in zip(groups, parts, strict=False):
            if not part:
                raise UsageError(f"group {glob!r} matches no parameter, or none that a group before it left")
        return {
            f"group{i}": (rule, part) for i, (rule, part) in enumerate(zip(rules, parts, strict=True)) if part
        }

    def init(params):
        return GroupState({name: rule.init(part) for name, (rule, part) in split(params).items()})

    def update(updates, state, params=None):
        steps, states = {}, {}
        for name, (rule, part) in split(updates).items():
            own = None if params is None else {path: params[path] for path in part}
            changed, states[name] = rule.update(part, state.groups[name], own)
            steps.update(changed)
        return {path: steps[path] for path in updates}, GroupState(states)

    return Rule(init, update)


def _group(glob: str, fields: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
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
    own = {k: v for k, v in fields.items() if k not in GROUP_FIELDS}
    return {
        "optimizer": kind,
        "learning_rate": rate,
        "weight_decay": fields.get("weight_decay", base["weight_decay"]),
        "options": {**(base["options"] if kind == base["optimizer"] else {}), **own},
        "mask": None if "weight_decay" in fields else base["mask"],
    }


# -------------------------------------------------------------------------------------------------- shared


def _moments(updates, state, b1, b2):
    """Adam's two moments and the step they belong to."""
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    return mu, nu, state.count + 1


def _as(scalar: Any, like: Any) -> Any:
    """A number in the dtype of the array it meets."""
    return jnp.asarray(scalar).astype(like.dtype)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0


def _has_schedule(value: Any) -> bool:
    return any(map(callable, value)) if isinstance(value, tuple | list) else callable(value)


def _check_range(optimizer: str, option: str, value: Any) -> None:
    """Numbers are checked as torch checks them; traced values and schedules cannot be."""
    numbers = [v for v in (value if isinstance(value, tuple | list) else [value]) if type(v) in (int, float)]
    if option == "betas":
        if len(value) != 2 or not all(0 <= v < 1 for v in numbers):
            raise UsageError(f"{optimizer}: betas must be two numbers in [0, 1), not {value}")
    elif option not in ("ns_coefficients", "dampening") and any(v < 0 for v in numbers):
        raise UsageError(f"{optimizer}: {option} must not be negative, not {value}")


def _promoting(inner: Rule) -> Rule:
    """optax mixes its int32 counts with floats, which strict dtype promotion would refuse."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return Rule(inner.init, update)
