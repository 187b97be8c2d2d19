"""Losses of class labels, one of several or independent ones: functions and classes under torch's names.

The classes are last: where torch has logits (N, C, d1, d2), here they are (N, d1, d2, C). Labels (N, d1, d2) are as
in torch, and probabilities have the shape of the logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.loss.reduction import (
    WeightedLoss,
    optional_buffer,
    optional_value,
    promoted,
    reduced,
    reduction_name,
    refuse_where,
    same_shape,
)

Logits = Float[Array, "..."]
Labels = Shaped[Array, "..."]
Weight = Float[Array, "..."] | None
TINY = float(np.float32(1e-12))  # torch keeps it in float32


def nll_loss(
    input: Logits,
    target: Labels,
    weight: Weight = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Logits:
    """torch.nn.functional.nll_loss: minus the log-probability of the label. (N, d1, ..., C) and (N, d1, ...).

    Without a batch axis (C,) and (). The mean is over the labels that are not `ignore_index`, each by its class's
    weight (C,); of no label it is NaN. Under jit a label outside [0, C) gives NaN.

    Raises:
        DataError: other shapes or dtypes; (not under jit) a label outside [0, C).
        UsageError: unknown reduction.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    scale = _class_weights(input, weight)
    index, valid = checked_labels(input.shape, target, ignore_index)
    values, count = _picked(input, index, valid, scale)
    return reduced(values, reduction, count)


def cross_entropy(
    input: Logits,
    target: Labels,
    weight: Weight = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Logits:
    """torch.nn.functional.cross_entropy of logits (N, d1, ..., C); without a batch axis (C,).

    Targets are labels (N, d1, ...), of which `ignore_index` counts for nothing, or probabilities of the logits'
    shape. The mean is over the labels that are not ignored, each by its class's weight (C,), or over all rows of
    probabilities; of nothing it is NaN. Under jit a label outside [0, C) gives NaN.

    Raises:
        DataError: other shapes or dtypes; (not under jit) a label outside [0, C).
        UsageError: label_smoothing outside [0, 1], `ignore_index` with probabilities, unknown reduction.
    """
    reduction = reduction_name(size_average, reduce, reduction)
    values, count = entropy_rows(input, target, weight, ignore_index, label_smoothing)
    return reduced(values, reduction, count).astype(input.dtype)


def entropy_rows(
    input: Logits, target: Labels, weight: Weight, ignore_index: int, label_smoothing: float
) -> tuple[Logits, Shaped[Array, ""] | int]:
    """The cross-entropy of each row, and the number, or sum of weights, by which their mean divides.

    In float32 at least.
    """
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    scale = _class_weights(input, weight)
    log_p = jax.nn.log_softmax(input.astype(accumulation_dtype(input.dtype)))
    scale = None if scale is None else scale.astype(log_p.dtype)
    classes = input.shape[-1]
    if target.shape == input.shape:
        if not jnp.issubdtype(target.dtype, jnp.floating):
            raise DataError(f"a target of the logits' shape holds probabilities: it cannot be {target.dtype}")
        if ignore_index >= 0:
            raise UsageError("ignore_index has no meaning with probabilities as the target: leave it out")
        log_p, soft = promoted(log_p, target)
        if label_smoothing > 0:
            soft = soft * (1 - label_smoothing) + label_smoothing / classes
        values = -(log_p * soft if scale is None else log_p * soft * scale).sum(-1)
        return values, values.size
    index, valid = checked_labels(input.shape, target, ignore_index)
    values, count = _picked(log_p, index, valid, scale)
    if label_smoothing > 0:
        smooth = -(log_p if scale is None else log_p * scale).sum(-1)
        smooth = jnp.where(valid, smooth, 0)
        values = (1 - label_smoothing) * values + smooth * (label_smoothing / classes)
    return values, count


def checked_labels(
    shape: tuple[int, ...], target: Labels, ignore_index: int
) -> tuple[Int[Array, "..."], Bool[Array, "..."]]:
    """The labels of logits of a shape, those ignored as 0 and (under jit) those out of range as -1; which count.

    Raises:
        DataError: labels of another shape or dtype; (not under jit) a label outside [0, C).
    """
    if not shape or target.shape != shape[:-1]:
        raise DataError(
            f"labels of shape {target.shape} do not fit an input of shape {shape}: "
            f"its classes are last, so they must have the shape {shape[:-1]}"
        )
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise DataError(f"labels must be integers, not {target.dtype}")
    valid = target != ignore_index
    outside = (target < 0) | (target >= shape[-1])
    refuse_where(valid & outside, f"a label is out of range: it must be in [0, {shape[-1]})")
    return jnp.where(valid, jnp.where(outside, -1, target), 0), valid


def _picked(
    log_p: Logits, index: Int[Array, "..."], valid: Bool[Array, "..."], scale: Weight
) -> tuple[Logits, Shaped[Array, ""]]:
    """Minus the log-probability of each label by its weight, 0 where it is ignored; the sum of the weights."""
    if log_p.shape[-1] == 0:  # there is no label to pick
        return jnp.zeros(index.shape, log_p.dtype), jnp.zeros((), log_p.dtype)
    label = jnp.maximum(index, 0)
    picked = -jnp.take_along_axis(log_p, label[..., None], -1)[..., 0]
    picked = jnp.where(index < 0, jnp.nan, picked)
    if scale is None:
        return jnp.where(valid, picked, 0), valid.sum()
    by_label = scale[label]
    return jnp.where(valid, picked * by_label, 0), jnp.where(valid, by_label, 0).sum()


def _class_weights(input: Logits, weight: Weight) -> Weight:
    """The weights as they are.

    Raises:
        DataError: another shape than (C,), or another dtype than the input's.
    """
    if weight is None:
        return None
    if weight.shape != input.shape[-1:]:
        raise DataError(
            f"weight of shape {weight.shape} must have one number for each class: {input.shape[-1:]}"
        )
    if weight.dtype != input.dtype:
        raise DataError(f"weight is {weight.dtype}, the input is {input.dtype}: give both in one dtype")
    return weight


def binary_cross_entropy(
    input: Logits,
    target: Logits,
    weight: Weight = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Logits:
    """torch.nn.functional.binary_cross_entropy of probabilities: logarithms are at least -100. Any shape.

    The weight broadcasts.

    Raises:
        DataError: other shapes; (not under jit) a probability outside [0, 1].
        UsageError: unknown reduction.
    """
    same_shape(input, target)
    p, y = promoted(input, target)
    refuse_where((p < 0) | (p > 1), "input has a number outside [0, 1]: it must hold probabilities")
    values = _bounded_entropy(p, y)
    if weight is not None:
        values = values * weight.astype(values.dtype)
    return reduced(values, reduction_name(size_average, reduce, reduction))


@jax.custom_jvp
def _bounded_entropy(p: Logits, y: Logits) -> Logits:
    return -(y * jnp.maximum(jnp.log(p), -100) + (1 - y) * jnp.maximum(jnp.log1p(-p), -100))


def _bounded_entropy_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    """torch's derivatives, which ignore the bound of the logarithms; that of the target may be infinite."""
    p, y = primals
    by_p = (p - y) / jnp.maximum((1 - p) * p, TINY)
    by_y = jnp.log1p(-p) - jnp.log(p)
    terms = [t * by for t, by in zip(tangents, (by_p, by_y), strict=True) if not isinstance(t, SymbolicZero)]
    return _bounded_entropy(p, y), sum(terms, jnp.zeros_like(p))


_bounded_entropy.defjvp(_bounded_entropy_jvp, symbolic_zeros=True)


def binary_cross_entropy_with_logits(
    input: Logits,
    target: Logits,
    weight: Weight = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Weight = None,
) -> Logits:
    """torch.nn.functional.binary_cross_entropy_with_logits. Any shape; `weight` and `pos_weight` broadcast.

    Raises:
        DataError: another shape of the target.
        UsageError: unknown reduction.
    """
    same_shape(input, target)
    x, y = promoted(input, target)
    positive = jnp.ones((), x.dtype) if pos_weight is None else (pos_weight.astype(x.dtype) - 1) * y + 1
    values = (1 - y) * x + positive * jax.nn.softplus(-x)
    if weight is not None:
        values = values * weight.astype(x.dtype)
    return reduced(values, reduction_name(size_average, reduce, reduction))


class NLLLoss(WeightedLoss):
    """torch.nn.NLLLoss of log-probabilities (N, d1, ..., C) and labels (N, d1, ...); classes last."""

    def __init__(
        self,
        weight: Weight = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index

    def __call__(self, input: Logits, target: Labels) -> Logits:
        return nll_loss(
            input,
            target,
            optional_value(self.weight),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class NLLLoss2d(NLLLoss):
    """torch.nn.NLLLoss2d: `NLLLoss` under its older name."""


class CrossEntropyLoss(WeightedLoss):
    """torch.nn.CrossEntropyLoss of logits (N, d1, ..., C) and labels (N, d1, ...) or probabilities; classes last."""

    def __init__(
        self,
        weight: Weight = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ):
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing

    def __call__(self, input: Logits, target: Labels) -> Logits:
        return cross_entropy(
            input,
            target,
            optional_value(self.weight),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCELoss(WeightedLoss):
    """torch.nn.BCELoss of probabilities. Any shape; the weight broadcasts."""

    def __call__(self, input: Logits, target: Logits) -> Logits:
        return binary_cross_entropy(input, target, optional_value(self.weight), reduction=self.reduction)


class BCEWithLogitsLoss(WeightedLoss):
    """torch.nn.BCEWithLogitsLoss. Any shape; `weight` and `pos_weight` broadcast, their last axis is the classes."""

    def __init__(
        self,
        weight: Weight = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Weight = None,
    ):
        super().__init__(weight, size_average, reduce, reduction)
        self.pos_weight = optional_buffer(pos_weight)

    def __call__(self, input: Logits, target: Logits) -> Logits:
        return binary_cross_entropy_with_logits(
            input,
            target,
            optional_value(self.weight),
            reduction=self.reduction,
            pos_weight=optional_value(self.pos_weight),
        )
