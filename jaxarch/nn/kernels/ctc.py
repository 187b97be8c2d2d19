"""Connectionist temporal classification: the probability of a label sequence under every alignment, in log space."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@partial(jax.jit, static_argnums=(4, 5))
def ctc_nll(
    log_probs: Float[Array, "t n c"],
    labels: Int[Array, "n s"],
    input_lengths: Int[Array, " n"],
    label_lengths: Int[Array, " n"],
    blank: int,
    zero_infinity: bool,
) -> Float[Array, " n"]:
    """Minus the log-probability of each row's labels (Graves et al. 2006); infinite if no alignment exists.

    Only the first `input_lengths` steps and `label_lengths` labels of a row count. The gradient is torch's: it
    assumes that `log_probs` come from a log-softmax, and is exp(log_probs) minus the posterior of each class. Where
    the value is infinite it is NaN, or with `zero_infinity` 0, as the value is then.
    """
    return _ctc_nll(log_probs, labels, input_lengths, label_lengths, blank, zero_infinity)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ctc_nll(
    log_probs: Array,
    labels: Array,
    input_lengths: Array,
    label_lengths: Array,
    blank: int,
    zero_infinity: bool,
) -> Array:
    value = _nll(log_probs, labels, input_lengths, label_lengths, blank)
    return jnp.where(jnp.isinf(value), 0, value) if zero_infinity else value


def _forward(
    log_probs: Array,
    labels: Array,
    input_lengths: Array,
    label_lengths: Array,
    blank: int,
    zero_infinity: bool,
) -> tuple[Array, Any]:
    def of(log_probs: Array) -> Array:
        return _nll(log_probs, labels, input_lengths, label_lengths, blank)

    value, pullback = jax.vjp(of, log_probs)
    infinite = jnp.isinf(value)
    residuals = (pullback, log_probs, input_lengths, infinite)
    return jnp.where(infinite, 0, value) if zero_infinity else value, residuals


def _backward(
    blank: int, zero_infinity: bool, residuals: Any, cotangent: Array
) -> tuple[Array, None, None, None]:
    pullback, log_probs, input_lengths, infinite = residuals
    (minus_posterior,) = pullback(jnp.ones_like(cotangent))
    gradient = (jnp.exp(log_probs) + minus_posterior) * cotangent[None, :, None]
    gradient = jnp.where(infinite[None, :, None], 0 if zero_infinity else jnp.nan, gradient)
    counted = jnp.arange(len(log_probs))[:, None] < input_lengths
    return jnp.where(counted[..., None], gradient, 0), None, None, None


_ctc_nll.defvjp(_forward, _backward)


def _nll(log_probs: Array, labels: Array, input_lengths: Array, label_lengths: Array, blank: int) -> Array:
    """Minus the log-probability by the forward recursion over labels with blanks between and around them."""
    n, s = labels.shape
    present = jnp.arange(s) < label_lengths[:, None]
    states = jnp.full((n, 2 * s + 1), blank, labels.dtype).at[:, 1::2].set(jnp.where(present, labels, blank))
    # A label may follow the one before without a blank, unless both are the same.
    skips = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    emitted = jnp.take_along_axis(log_probs, states[None], -1)
    # Before the first step: the state of the first blank, from which the first label is a step away, too.
    start = jnp.where(jnp.arange(2 * s + 1) == 0, 0, -jnp.inf).astype(log_probs.dtype)
    start = jnp.broadcast_to(start, states.shape)

    def step(alpha: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        emission, counted = at
        stay, by_one = alpha, _shifted(alpha, 1)
        by_two = jnp.where(
            jnp.pad(skips, ((0, 0), (min(2, 2 * s + 1), 0)))[:, : 2 * s + 1], _shifted(alpha, 2), -jnp.inf
        )
        new = _logsumexp(jnp.stack([stay, by_one, by_two])) + emission
        return jnp.where(counted[:, None], new, alpha), None

    counted = jnp.arange(len(log_probs))[:, None] < input_lengths
    alpha, _ = jax.lax.scan(step, start, (emitted, counted))
    last = 2 * label_lengths[:, None]
    ends = jnp.take_along_axis(alpha, jnp.concatenate([last, jnp.maximum(last - 1, 0)], -1), -1)
    ends = jnp.where((last == 0) & (jnp.arange(2) == 1), -jnp.inf, ends)
    return -_logsumexp(ends.T)


def _shifted(alpha: Array, by: int) -> Array:
    """alpha of the state `by` before; -inf where there is none."""
    width = alpha.shape[-1]
    return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=-jnp.inf)[:, :width]


def _logsumexp(x: Array) -> Array:
    """log sum exp over the first axis; of -inf alone it is -inf, without a gradient."""
    largest = jax.lax.stop_gradient(x.max(0))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    total = jnp.exp(x - largest).sum(0)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + largest, -jnp.inf)
