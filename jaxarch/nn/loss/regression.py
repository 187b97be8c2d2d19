"""Losses of numbers and of distributions, element by element: functions and classes under torch's names."""

import math
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.distance import absolute
from jaxarch.nn.loss.reduction import (
    REDUCTIONS,
    Loss,
    promoted,
    reduced,
    reduction_name,
    refuse_where,
    same_shape,
)

Values = Float[Array, "..."]
Numbers = Shaped[Array, "..."]  # integers too


def _broadcast(input: Values, target: Numbers) -> tuple[Array, Array]:
    """Both in one dtype and shape; as in torch, another shape of the target is broadcast with a warning."""
    if input.shape != target.shape:
        message = f"target of shape {target.shape} is broadcast with the input of shape {input.shape}"
        warnings.warn(message, stacklevel=3)
    x, y = jnp.broadcast_arrays(*promoted(input, target))
    return x, y


def _weighted(values: Values, weight: Values | None, input: Values) -> tuple[Array, Array | None]:
    """The values times the weights, and the sum of the weights."""
    if weight is None:
        return values, None
    same_shape(input, weight, "weight")
    return values * weight.astype(values.dtype), weight.astype(values.dtype).sum()


def l1_loss(
    input: Values,
    target: Numbers,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Values | None = None,
) -> Values:
    """torch.nn.functional.l1_loss: |input - target|; with weights, the weighted mean. Any shape."""
    x, y = _broadcast(input, target)
    values, count = _weighted(absolute(x - y), weight, input)
    return reduced(values, reduction_name(size_average, reduce, reduction), count)


def mse_loss(
    input: Values,
    target: Numbers,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Values | None = None,
) -> Values:
    """torch.nn.functional.mse_loss: (input - target)^2; with weights, the weighted mean. Any shape."""
    x, y = _broadcast(input, target)
    values, count = _weighted(jnp.square(x - y), weight, input)
    return reduced(values, reduction_name(size_average, reduce, reduction), count)


def smooth_l1_loss(
    input: Values,
    target: Numbers,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Values:
    """torch.nn.functional.smooth_l1_loss: Huber's loss over `beta`; |input - target| for beta 0. Any shape.

    Raises:
        UsageError: beta below 0, unknown reduction.
    """
    if beta < 0:
        raise UsageError(f"beta must be at least 0, not {beta}")
    x, y = _broadcast(input, target)
    values = absolute(x - y) if beta == 0 else _huber(x - y, beta) / beta
    return reduced(values, reduction_name(size_average, reduce, reduction))


def huber_loss(
    input: Values,
    target: Numbers,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Values | None = None,
) -> Values:
    """torch.nn.functional.huber_loss: half the square up to `delta`, then a line (Huber 1964). Any shape.

    With weights the mean is over the elements, as in torch, not over the weights.

    Raises:
        UsageError: delta not above 0, unknown reduction.
    """
    if delta <= 0:
        raise UsageError(f"delta must be above 0, not {delta}")
    x, y = _broadcast(input, target)
    values, _ = _weighted(_huber(x - y, delta), weight, input)
    return reduced(values, reduction)


def _huber(difference: Values, delta: float) -> Values:
    """As a sum of two terms, each of which has a gradient everywhere."""
    size = jnp.abs(difference)
    near = jnp.minimum(size, delta)
    return 0.5 * near**2 + delta * (size - near)


def kl_div(
    input: Values,
    target: Values,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Values:
    """torch.nn.functional.kl_div of log-probabilities `input` against probabilities `target`, or their logarithms.

    "mean" is over all elements, "batchmean" the sum over the size of the first dim. Any shape. As in torch, the
    gradient of a target of 0 is NaN.
    """
    reduction = reduction_name(size_average, reduce, reduction, (*REDUCTIONS, "batchmean"))
    x, y = promoted(input, target)
    values = jnp.exp(y) * (y - x) if log_target else jax.scipy.special.xlogy(y, y) - y * x
    if reduction != "batchmean":
        return reduced(values, reduction)
    return reduced(values, "mean", input.shape[0]) if input.ndim else values


def poisson_nll_loss(
    input: Values,
    target: Numbers,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Values:
    """torch.nn.functional.poisson_nll_loss: rate - target log(rate), the rate being exp(input) if `log_input`.

    `full` adds Stirling's approximation of log(target!) where the target is above 1. Any shape.
    """
    x, y = promoted(input, target)
    values = jnp.exp(x) - y * x if log_input else x - y * jnp.log(x + eps)
    if full:
        # In two steps, so that the gradient is NaN where torch's is.
        stirling = y * jnp.log(y) - y + 0.5 * jnp.log(2 * math.pi * y)
        values = values + jnp.where(y <= 1, 0, stirling)
    return reduced(values, reduction_name(size_average, reduce, reduction))


def gaussian_nll_loss(
    input: Values,
    target: Numbers,
    var: Numbers | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Values:
    """torch.nn.functional.gaussian_nll_loss: (log var + (input - target)^2 / var) / 2, var at least `eps`.

    `var` has the input's shape, lacks its last axis, or has a last axis of 1 (any one axis of 1); a number is
    that variance everywhere. `full` adds log(2 pi) / 2. The bound `eps` does not stop the gradient, as in torch.

    Raises:
        DataError: another shape of var, or (not under jit) a variance below 0.
    """
    x, y, v = promoted(input, target, var)
    refuse_where(v < 0, "var has a negative variance: it must be at least 0")
    if v.shape not in (x.shape, ()):
        if v.shape == x.shape[:-1]:
            v = v[..., None]
        elif v.ndim != x.ndim or sum(b for a, b in zip(x.shape, v.shape, strict=True) if a != b) != 1:
            raise DataError(f"var of shape {v.shape} must have the shape {x.shape}, or 1 for one of its axes")
    v = jnp.where(v < eps, eps + (v - jax.lax.stop_gradient(v)), v)
    values = 0.5 * (jnp.log(v) + jnp.square(x - y) / v)
    if full:
        values = values + 0.5 * math.log(2 * math.pi)
    return reduced(values, reduction)


class L1Loss(Loss):
    """torch.nn.L1Loss: |input - target|. Any shape."""

    def __call__(self, input: Values, target: Numbers) -> Values:
        return l1_loss(input, target, reduction=self.reduction)


class MSELoss(Loss):
    """torch.nn.MSELoss: (input - target)^2. Any shape."""

    def __call__(self, input: Values, target: Numbers) -> Values:
        return mse_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(Loss):
    """torch.nn.SmoothL1Loss: Huber's loss over `beta`. Any shape."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        beta: float = 1.0,
    ):
        super().__init__(size_average, reduce, reduction)
        self.beta = beta

    def __call__(self, input: Values, target: Numbers) -> Values:
        return smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(Loss):
    """torch.nn.HuberLoss: half the square up to `delta`, then a line. Any shape.

    Raises:
        UsageError: delta is not a real number, unknown reduction.
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0):
        super().__init__(reduction=reduction)
        if not isinstance(delta, float | int):
            raise UsageError(f"delta must be a real number, not {delta!r}")
        self.delta = delta

    def __call__(self, input: Values, target: Numbers) -> Values:
        return huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class KLDivLoss(Loss):
    """torch.nn.KLDivLoss of log-probabilities against probabilities, or their logarithms. Any shape."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
    ):
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def __call__(self, input: Values, target: Values) -> Values:
        return kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class PoissonNLLLoss(Loss):
    """torch.nn.PoissonNLLLoss: rate - target log(rate). Any shape."""

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average: bool | None = None,
        eps: float = 1e-8,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        self.log_input, self.full, self.eps = log_input, full, eps

    def __call__(self, log_input: Values, target: Numbers) -> Values:
        return poisson_nll_loss(
            log_input,
            target,
            log_input=self.log_input,
            full=self.full,
            eps=self.eps,
            reduction=self.reduction,
        )


class GaussianNLLLoss(Loss):
    """torch.nn.GaussianNLLLoss of a mean and a variance. Any shape."""

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean"):
        super().__init__(reduction=reduction)
        self.full, self.eps = full, eps

    def __call__(self, input: Values, target: Numbers, var: Numbers | float) -> Values:
        return gaussian_nll_loss(input, target, var, full=self.full, eps=self.eps, reduction=self.reduction)
