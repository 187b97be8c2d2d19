"""torch's rules that know the axes of a weight: Adafactor, whose second moment is factored, and Muon.

Both are computed in torch's order of axes; their slots are kept in JAX's.
"""

import math
from types import SimpleNamespace as Options

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.optim.adam import Perm, lerp, shrunk, zeros
from jaxarch.optim.transformation import Parameter, Rule, State


def _to_torch(x: jax.Array, perm: Perm) -> jax.Array:
    return x if perm is None else x.transpose(tuple(int(i) for i in np.argsort(perm)))


def _to_jax(x: jax.Array, perm: Perm) -> jax.Array:
    return x if perm is None else x.transpose(perm)


def _norm(x: jax.Array) -> jax.Array:
    """torch's `norm(2)` of a whole array, without `jnp.linalg`'s limit of two dims."""
    return jnp.sqrt((x * x).sum())


def _adafactor_slots(value: jax.Array, o: Options, perm: Perm) -> State:
    if value.ndim < 2:
        return {"variance": jnp.zeros_like(value)}
    x = _to_torch(jnp.zeros_like(value), perm)
    return {"row_var": _to_jax(x[..., :1], perm), "col_var": _to_jax(x[..., :1, :], perm)}


def _adafactor(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Shazeer and Stern 2018: a second moment per row and per column of the last two of torch's dims."""
    eps1 = jnp.finfo(p.value.dtype).eps if o.eps[0] is None else o.eps[0]
    weight = p.step**o.beta2_decay
    rho = jnp.minimum(p.lr, 1 / jnp.sqrt(p.step))
    alpha = jnp.maximum(o.eps[1], _norm(p.value) / math.sqrt(p.value.size)) * rho
    decay = shrunk(p)
    squares = p.grad * p.grad
    if p.value.ndim < 2:
        variance = lerp(p.state["variance"], squares, weight)
        state = {"variance": variance}
    else:
        squares = _to_torch(squares, p.perm)
        row = lerp(_to_torch(p.state["row_var"], p.perm), squares.mean(-1, keepdims=True), weight)
        column = lerp(_to_torch(p.state["col_var"], p.perm), squares.mean(-2, keepdims=True), weight)
        mean = jnp.maximum(row.mean(-2, keepdims=True), eps1)
        variance = _to_jax(row * column / mean, p.perm)
        state = {"row_var": _to_jax(row, p.perm), "col_var": _to_jax(column, p.perm)}
    update = p.grad / jnp.sqrt(jnp.maximum(variance, eps1 * eps1))
    denominator = jnp.maximum(1.0, _norm(update) / (math.sqrt(update.size) * o.d))
    return -(alpha / denominator) * update + decay, state


def _orthogonal(x: Float[Array, "a b"], o: Options) -> Float[Array, "a b"]:
    """A Newton-Schulz iteration, on the side that has fewer rows."""
    a, b, c = o.ns_coefficients
    y = x if x.shape[0] <= x.shape[1] else x.T
    y = y / jnp.maximum(_norm(y), o.eps)
    for _ in range(o.ns_steps):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y if x.shape[0] <= x.shape[1] else y.T


def _muon(p: Parameter, o: Options) -> tuple[jax.Array, State]:
    """Jordan et al. 2024, in the weights' precision where torch rounds to bfloat16."""
    rows, columns = _to_torch(p.value, p.perm).shape
    buffer = lerp(p.state["momentum_buffer"], p.grad, 1 - o.momentum)
    ahead = lerp(p.grad, buffer, o.momentum) if o.nesterov else buffer
    if o.adjust_lr_fn == "match_rms_adamw":
        ratio = 0.2 * math.sqrt(max(rows, columns))
    else:
        ratio = math.sqrt(max(1, rows / columns))
    change = -p.lr * ratio * _orthogonal(ahead.astype(p.value.dtype), o)
    return change + shrunk(p), {"momentum_buffer": buffer}


ADAFACTOR = Rule(_adafactor_slots, _adafactor, is_complex=False)
MUON = Rule(zeros("momentum_buffer"), _muon, is_complex=False, only_matrices=True)
