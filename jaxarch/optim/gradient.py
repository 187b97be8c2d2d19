"""torch's rules of gradient descent and of per-element rates: SGD, ASGD, Rprop, RMSprop, Adagrad, Adadelta."""

from types import SimpleNamespace as Options

import jax
import jax.numpy as jnp

from jaxarch.optim.adam import Perm, decayed, is_zero, lerp, zeros
from jaxarch.optim.transformation import Parameter, Rule, State


def _sgd_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    return {} if is_zero(o.momentum) else {"momentum_buffer": jnp.zeros_like(value)}


def _sgd(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Momentum, whose first step is not dampened."""
    grad = decayed(p)
    if "momentum_buffer" not in p.state:
        return -p.lr * grad, {}
    scale = 1.0 if is_zero(o.dampening) else jnp.where(p.step == 1, 1.0, 1 - o.dampening)
    buffer = o.momentum * p.state["momentum_buffer"] + scale * grad
    return -p.lr * (grad + o.momentum * buffer if o.nesterov else buffer), {"momentum_buffer": buffer}


def _asgd(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Polyak and Juditsky 1992: `ax` is the average of the parameters from step t0 on.

    The rates of the next step, `eta` and `mu`, are kept in float32, as torch does.
    """
    eta, mu = (p.state[k].astype(p.step.dtype) for k in ("eta", "mu"))
    change = -(o.lambd * eta) * p.value - eta * decayed(p)
    ax = p.state["ax"]
    ax = jnp.where(mu == 1, p.value + change, lerp(ax, p.value + change, mu))
    next_eta = p.lr / (1 + o.lambd * p.lr * p.step) ** o.alpha
    next_mu = 1 / jnp.maximum(1, p.step - o.t0)
    return change, {"ax": ax, "eta": next_eta, "mu": next_mu}


def _rprop_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    return {"prev": jnp.zeros_like(value), "step_size": jnp.full_like(value, o.lr)}


def _rprop(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Riedmiller and Braun 1993: steps that grow while the sign stays, without a step where it changes."""
    minus, plus = o.etas
    sign = jnp.sign(p.grad * p.state["prev"])
    factor = jnp.where(sign > 0, plus, jnp.where(sign < 0, minus, 1.0))
    step_size = jnp.clip(p.state["step_size"] * factor, *o.step_sizes)
    grad = jnp.where(sign < 0, 0.0, p.grad)
    return -jnp.sign(grad) * step_size, {"prev": grad, "step_size": step_size}


def _rmsprop_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    names = ["square_avg"] + ["momentum_buffer"] * (not is_zero(o.momentum)) + ["grad_avg"] * o.centered
    return {name: jnp.zeros_like(value) for name in names}


def _rmsprop(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Hinton's lecture 6e; centered as Graves 2013 has it, with eps outside the root."""
    grad = decayed(p)
    square_avg = o.alpha * p.state["square_avg"] + (1 - o.alpha) * grad * grad
    state = {"square_avg": square_avg}
    if o.centered:
        grad_avg = lerp(p.state["grad_avg"], grad, 1 - o.alpha)
        state["grad_avg"] = grad_avg
        square_avg = square_avg - grad_avg * grad_avg
    change = grad / (jnp.sqrt(square_avg) + o.eps)
    if "momentum_buffer" in p.state:
        change = o.momentum * p.state["momentum_buffer"] + change
        state["momentum_buffer"] = change
    return -p.lr * change, state


def _adagrad_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    return {"sum": jnp.full_like(value, o.initial_accumulator_value)}


def _adagrad(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Duchi et al. 2011."""
    grad = decayed(p)
    total = p.state["sum"] + grad * grad
    return -p.lr / (1 + (p.step - 1) * o.lr_decay) * grad / (jnp.sqrt(total) + o.eps), {"sum": total}


def _adadelta(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Zeiler 2012."""
    grad = decayed(p)
    square_avg = o.rho * p.state["square_avg"] + (1 - o.rho) * grad * grad
    delta = jnp.sqrt(p.state["acc_delta"] + o.eps) / jnp.sqrt(square_avg + o.eps) * grad
    acc_delta = o.rho * p.state["acc_delta"] + (1 - o.rho) * delta * delta
    return -p.lr * delta, {"square_avg": square_avg, "acc_delta": acc_delta}


SGD = Rule(_sgd_slots, _sgd, sparse="dense")
ASGD = Rule(zeros("ax"), _asgd, lambda o: {"eta": o.lr, "mu": 1.0})
RPROP = Rule(_rprop_slots, _rprop)
RMSPROP = Rule(_rmsprop_slots, _rmsprop)
ADAGRAD = Rule(_adagrad_slots, _adagrad, sparse="dense")
ADADELTA = Rule(zeros("square_avg", "acc_delta"), _adadelta)
