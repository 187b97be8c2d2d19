"""torch.optim's update rules as optax transformations, under torch's argument names and defaults.

optax's own rule is used where it is torch's: momentum, Adam, Adamax, RMSprop, Lion. Each rule takes `decay`, the
transformation that adds weight decay, and chains it where torch does.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation as Rule

from jaxarch.errors import UsageError, unknown


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
