"""torch's rules of the Adam family: Adam, AdamW, Adamax, NAdam, RAdam, SparseAdam; and Lion, which torch lacks.

Each is the `_single_tensor_...` function of torch for one parameter: what is added to it, and its new slots.
"""

import math
from types import SimpleNamespace as Options
from typing import Any

import jax
import jax.numpy as jnp

from jaxarch.optim.transformation import Parameter, Rule, State

Perm = tuple[int, ...] | None


def zeros(*names: str) -> Any:
    """The slots that begin as zeros."""
    return lambda value, options, perm: {name: jnp.zeros_like(value) for name in names}


def decayed(p: Parameter) -> jax.Array:
    """The gradient with weight decay as an L2 penalty."""
    return p.grad if is_zero(p.weight_decay) else p.grad + p.weight_decay * p.value


def shrunk(p: Parameter) -> Any:
    """The change that decoupled weight decay makes."""
    return 0.0 if is_zero(p.weight_decay) else -(p.lr * p.weight_decay) * p.value


def lerp(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    """torch.lerp: from `start` to `end` by `weight`."""
    return start + weight * (end - start)


def correction(beta: Any, step: jax.Array) -> jax.Array:
    """1 - beta^step without cancellation in float32."""
    log: Any
    if isinstance(beta, int | float):
        log = math.log(beta) if beta > 0 else -math.inf
    else:
        log = jnp.log(jnp.asarray(beta, step.dtype))
    return -jnp.expm1(step * log)


def is_zero(value: Any) -> bool:
    """Whether a value is known to be 0."""
    return isinstance(value, int | float) and value == 0


def _moments(p: Parameter, grad: jax.Array, b1: Any, b2: Any) -> tuple[jax.Array, jax.Array]:
    exp_avg = lerp(p.state["exp_avg"], grad, 1 - b1)
    return exp_avg, b2 * p.state["exp_avg_sq"] + (1 - b2) * grad * grad


def _adam_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * o.amsgrad
    return {name: jnp.zeros_like(value) for name in names}


def _adam(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Kingma and Ba 2015; AMSGrad (Reddi et al. 2018) takes the maximum before the bias is corrected."""
    b1, b2 = o.betas
    exp_avg, exp_avg_sq = _moments(p, p.grad if o.decoupled_weight_decay else decayed(p), b1, b2)
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if o.amsgrad:
        exp_avg_sq = jnp.maximum(p.state["max_exp_avg_sq"], exp_avg_sq)
        state["max_exp_avg_sq"] = exp_avg_sq
    denominator = jnp.sqrt(exp_avg_sq) / jnp.sqrt(correction(b2, p.step)) + o.eps
    change = -(p.lr / correction(b1, p.step)) * (exp_avg / denominator)
    return (change + shrunk(p) if o.decoupled_weight_decay else change), state


def _adamax(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Kingma and Ba 2015, section 7: the infinity norm in place of the second moment."""
    b1, b2 = o.betas
    grad = decayed(p)
    exp_avg = lerp(p.state["exp_avg"], grad, 1 - b1)
    exp_inf = jnp.maximum(b2 * p.state["exp_inf"], jnp.abs(grad) + o.eps)
    change = -(p.lr / correction(b1, p.step)) * (exp_avg / exp_inf)
    return change, {"exp_avg": exp_avg, "exp_inf": exp_inf}


def _nadam(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Dozat 2016; the product of the momenta is kept in float32, as torch does."""
    b1, b2 = o.betas
    exp_avg, exp_avg_sq = _moments(p, p.grad if o.decoupled_weight_decay else decayed(p), b1, b2)
    mu, mu_next = (b1 * (1 - 0.5 * 0.96 ** (s * o.momentum_decay)) for s in (p.step, p.step + 1))
    mu_product = p.state["mu_product"] * mu.astype(jnp.float32)
    product = mu_product.astype(mu.dtype)
    denominator = jnp.sqrt(exp_avg_sq / correction(b2, p.step)) + o.eps
    of_grad = (1 - mu) / (1 - product) * (p.grad if o.decoupled_weight_decay else decayed(p))
    of_mean = mu_next / (1 - product * mu_next) * exp_avg
    change = -p.lr * (of_grad + of_mean) / denominator
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "mu_product": mu_product}
    return (change + shrunk(p) if o.decoupled_weight_decay else change), state


def _radam(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Liu et al. 2019: no second moment while the simple moving average is shorter than 5 (section 4)."""
    b1, b2 = o.betas
    exp_avg, exp_avg_sq = _moments(p, p.grad if o.decoupled_weight_decay else decayed(p), b1, b2)
    mean, c2 = exp_avg / correction(b1, p.step), correction(b2, p.step)
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * p.step * (1 - c2) / c2
    ratio = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    rectification = jnp.sqrt(jnp.maximum(ratio, 0) * c2)
    scaled = mean * rectification / (jnp.sqrt(exp_avg_sq) + o.eps)
    change = -p.lr * jnp.where(rho > 5, scaled, mean)
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return (change + shrunk(p) if o.decoupled_weight_decay else change), state


def _sparse_adam(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Adam of the entries that a sparse gradient has; all others, and their moments, stay."""
    assert p.touched is not None
    b1, b2 = o.betas
    exp_avg, exp_avg_sq = _moments(p, p.grad, b1, b2)
    size = p.lr * jnp.sqrt(correction(b2, p.step)) / correction(b1, p.step)
    change = jnp.where(p.touched, -size * exp_avg / (jnp.sqrt(exp_avg_sq) + o.eps), 0.0)
    new = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return change, {k: jnp.where(p.touched, v, p.state[k]) for k, v in new.items()}


def _lion(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Chen et al. 2023: the sign of an interpolated momentum."""
    b1, b2 = o.betas
    exp_avg = p.state["exp_avg"]
    change = -p.lr * jnp.sign(b1 * exp_avg + (1 - b1) * p.grad)
    return change + shrunk(p), {"exp_avg": lerp(exp_avg, p.grad, 1 - b2)}


ADAM = Rule(_adam_slots, _adam)
ADAMAX = Rule(zeros("exp_avg", "exp_inf"), _adamax)
NADAM = Rule(zeros("exp_avg", "exp_avg_sq"), _nadam, lambda o: {"mu_product": 1.0})
RADAM = Rule(zeros("exp_avg", "exp_avg_sq"), _radam)
SPARSE_ADAM = Rule(zeros("exp_avg", "exp_avg_sq"), _sparse_adam, sparse="lazy", is_complex=False)
LION = Rule(zeros("exp_avg"), _lion, is_complex=False)
