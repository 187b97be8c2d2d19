"""torch.optim's update rules as optax transformations, under torch's argument names and defaults.

optax's rule is used where it matches torch's: momentum, Adam, Adamax, RMSprop, Lion. Each rule takes `decay`, the
transformation that adds weight decay, and chains it where torch does.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from optax import GradientTransformation as Rule

from jaxarch.errors import UsageError, unknown
from jaxarch.state import Flat

# A hyper-parameter: a number, or a traced one, such as that of a schedule.
Scalar = float | jax.Array


class DampenedState(NamedTuple):
    """`trace` is torch's momentum_buffer; `count` tells the first step, which is not dampened."""

    count: Any  # type: ignore[assignment]  # as optax calls it; it hides tuple.count
    trace: Flat


class AdamaxState(NamedTuple):
    """optax's state of Adamax as a type of its own, so that it is not taken for Adam's."""

    count: Any  # type: ignore[assignment]
    mu: Flat
    nu: Flat


class NadamState(NamedTuple):
    """Adam's moments and the product of the momenta, which torch keeps in float32."""

    count: Any  # type: ignore[assignment]
    mu: Flat
    nu: Flat
    mu_product: jax.Array


class AdagradState(NamedTuple):
    """The sum of the squared gradients so far."""

    count: Any  # type: ignore[assignment]
    sum_of_squares: Flat


class MuonState(NamedTuple):
    """`trace` is torch's momentum_buffer."""

    trace: Flat


def _sgd(decay: Rule, momentum: Scalar = 0.0, dampening: Scalar = 0.0, nesterov: bool = False) -> Rule:
    if nesterov and (_is_zero(momentum) or not _is_zero(dampening)):
        raise UsageError("nesterov needs a momentum and no dampening")
    if _is_zero(momentum):
        return decay
    trace = optax.trace(momentum, nesterov) if _is_zero(dampening) else _dampened(momentum, dampening)
    return optax.chain(decay, trace)


def _dampened(momentum: Scalar, dampening: Scalar) -> Rule:
    def init(params: Flat) -> DampenedState:
        return DampenedState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(updates: Flat, state: DampenedState, params: Flat | None = None) -> tuple[Flat, DampenedState]:
        factor = jnp.where(state.count == 0, 1.0, 1 - dampening)
        trace = jax.tree.map(lambda t, g: momentum * t + _cast(factor, g) * g, state.trace, updates)
        return trace, DampenedState(state.count + 1, trace)

    return Rule(init, update)


def _adam(
    decay: Rule,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    amsgrad: bool = False,
    decoupled: bool = False,
) -> Rule:
    b1, b2 = betas
    moments = _amsgrad(b1, b2, eps) if amsgrad else optax.scale_by_adam(b1, b2, eps=eps)
    return optax.chain(moments, decay) if decoupled else optax.chain(decay, moments)


def _adamw(
    decay: Rule,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    amsgrad: bool = False,
) -> Rule:
    return _adam(decay, betas, eps, amsgrad, decoupled=True)


def _amsgrad(b1: Scalar, b2: Scalar, eps: Scalar) -> Rule:
    """optax corrects the second moment's bias before it takes the maximum, torch after."""
    inner = optax.scale_by_amsgrad(b1, b2, eps)

    def update(
        updates: Flat, state: optax.ScaleByAmsgradState, params: Flat | None = None
    ) -> tuple[Flat, optax.ScaleByAmsgradState]:
        mu, nu, count = _moments(updates, state, b1, b2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        c1, c2 = 1 - b1**count, jnp.sqrt(1 - b2**count)
        updates = jax.tree.map(lambda m, v: m / _cast(c1, m) / (jnp.sqrt(v) / _cast(c2, v) + eps), mu, nu_max)
        return updates, optax.ScaleByAmsgradState(count, mu, nu, nu_max)

    return Rule(inner.init, update)


def _nadam(
    decay: Rule,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    momentum_decay: Scalar = 4e-3,
    decoupled_weight_decay: bool = False,
) -> Rule:
    b1, b2 = betas

    def init(params: Flat) -> NadamState:
        zeros = optax.tree.zeros_like(params)
        return NadamState(
            jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.copy, zeros), jnp.ones((), jnp.float32)
        )

    def update(updates: Flat, state: NadamState, params: Flat | None = None) -> tuple[Flat, NadamState]:
        mu, nu, count = _moments(updates, state, b1, b2)
        step = count.astype(jnp.result_type(float))
        mu_now, mu_next = (b1 * (1 - 0.5 * 0.96 ** (s * momentum_decay)) for s in (step, step + 1))
        mu_product = state.mu_product * mu_now.astype(jnp.float32)
        product = mu_product.astype(step.dtype)
        grad_factor, momentum_factor = (1 - mu_now) / (1 - product), mu_next / (1 - product * mu_next)
        c2 = 1 - b2**count

        def scale(m: jax.Array, v: jax.Array, g: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / _cast(c2, v)) + eps
            return _cast(grad_factor, g) * g / root + _cast(momentum_factor, m) * m / root

        return jax.tree.map(scale, mu, nu, updates), NadamState(count, mu, nu, mu_product)

    rule = Rule(init, update)
    return optax.chain(rule, decay) if decoupled_weight_decay else optax.chain(decay, rule)


def _radam(
    decay: Rule,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    decoupled_weight_decay: bool = False,
) -> Rule:
    b1, b2 = betas

    def update(
        updates: Flat, state: optax.ScaleByAdamState, params: Flat | None = None
    ) -> tuple[Flat, optax.ScaleByAdamState]:
        mu, nu, count = _moments(updates, state, b1, b2)
        step = count.astype(jnp.result_type(float))
        c1, c2 = 1 - b1**count, 1 - b2**count
        # The length of the approximated simple moving average (Liu et al. 2019, section 4).
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * step * b2**step / c2
        ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        rectification = jnp.sqrt(jnp.maximum(ratio, 0) * c2)

        def scale(m: jax.Array, v: jax.Array) -> jax.Array:
            mean = m / _cast(c1, m)
            return jnp.where(rho > 5, mean * _cast(rectification, m) / (jnp.sqrt(v) + eps), mean)

        return jax.tree.map(scale, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    rule = Rule(optax.scale_by_radam().init, update)
    return optax.chain(rule, decay) if decoupled_weight_decay else optax.chain(decay, rule)


def _adamax(decay: Rule, betas: tuple[Scalar, Scalar] = (0.9, 0.999), eps: Scalar = 1e-8) -> Rule:
    inner = optax.scale_by_adamax(*betas, eps=eps)

    def init(params: Flat) -> AdamaxState:
        return AdamaxState(*inner.init(params))

    def update(updates: Flat, state: AdamaxState, params: Flat | None = None) -> tuple[Flat, AdamaxState]:
        updates, new_state = inner.update(updates, optax.ScaleByAdamState(*state), params)
        return updates, AdamaxState(*new_state)

    return optax.chain(decay, Rule(init, update))


def _adagrad(
    decay: Rule, lr_decay: Scalar = 0.0, initial_accumulator_value: Scalar = 0.0, eps: Scalar = 1e-10
) -> Rule:
    def init(params: Flat) -> AdagradState:
        return AdagradState(jnp.zeros((), jnp.int32), optax.tree.full_like(params, initial_accumulator_value))

    def update(updates: Flat, state: AdagradState, params: Flat | None = None) -> tuple[Flat, AdagradState]:
        squares = jax.tree.map(lambda s, g: s + g * g, state.sum_of_squares, updates)
        scale = 1 / (1 + state.count * lr_decay)
        updates = jax.tree.map(lambda s, g: _cast(scale, g) * g / (jnp.sqrt(s) + eps), squares, updates)
        return updates, AdagradState(state.count + 1, squares)

    return optax.chain(decay, Rule(init, update))


def _rmsprop(
    decay: Rule, alpha: Scalar = 0.99, eps: Scalar = 1e-8, momentum: Scalar = 0.0, centered: bool = False
) -> Rule:
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    rules = [decay, scale(decay=alpha, eps=eps, eps_in_sqrt=False)]
    return optax.chain(*rules, *([] if _is_zero(momentum) else [optax.trace(momentum)]))


def _lion(decay: Rule, betas: tuple[Scalar, Scalar] = (0.9, 0.99)) -> Rule:
    return optax.chain(optax.scale_by_lion(*betas), decay)


def _muon(
    decay: Rule,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    eps: Scalar = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
) -> Rule:
    """torch.optim.Muon of weights (in, out), in the weights' precision where torch rounds to bfloat16."""
    if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
        raise unknown("adjust_lr_fn", adjust_lr_fn, ("original", "match_rms_adamw"))
    a, b, c = ns_coefficients

    def init(params: Flat) -> MuonState:
        for path, x in params.items():
            if x.ndim != 2:
                raise UsageError(f"Muon takes matrices only: give {path} another optimizer in a group")
        return MuonState(optax.tree.zeros_like(params))

    def orthogonal(x: Float[Array, "i o"]) -> Float[Array, "i o"]:
        """A Newton-Schulz iteration, on the side that has fewer rows."""
        y = x if x.shape[0] <= x.shape[1] else x.T
        y = y / jnp.maximum(jnp.linalg.norm(y), eps)
        for _ in range(ns_steps):
            gram = y @ y.T
            y = a * y + (b * gram + c * gram @ gram) @ y
        return y if x.shape[0] <= x.shape[1] else y.T

    def ratio(x: Float[Array, "i o"]) -> float:
        fan_in, fan_out = x.shape
        if adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(fan_in, fan_out))
        return math.sqrt(max(1, fan_out / fan_in))

    def update(updates: Flat, state: MuonState, params: Flat | None = None) -> tuple[Flat, MuonState]:
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


def _moments(updates: Flat, state: Any, b1: Scalar, b2: Scalar) -> tuple[Flat, Flat, jax.Array]:
    """Adam's two moments and the number of steps taken, of a state with `mu`, `nu` and `count`."""
    mu = optax.tree.update_moment(updates, state.mu, b1, 1)
    nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
    return mu, nu, state.count + 1


def _cast(scalar: Scalar, like: jax.Array) -> jax.Array:
    """A number in the dtype of an array."""
    return jnp.asarray(scalar).astype(like.dtype)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and value == 0
