"""Margin losses of scores, by classes, labels of 1 and -1 or pairs: functions and classes under torch's names."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.loss.reduction import (
    Loss,
    WeightedLoss,
    at_least,
    optional_value,
    promoted,
    reduced,
    reduction_name,
    refuse_where,
    same_shape,
)

Scores = Float[Array, "..."]
Labels = Shaped[Array, "..."]
Weight = Float[Array, "..."] | None


def hinge_embedding_loss(
    input: Scores,
    target: Labels,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.hinge_embedding_loss: input where the target is 1, max(margin - input, 0) where -1.

    Any shape, and the target broadcasts.
    """
    x, y = promoted(input, target)
    values = jnp.where(y != 1, at_least(margin - x, 0.0), 0) + jnp.where(y != -1, x, 0)
    return reduced(values, reduction_name(size_average, reduce, reduction))


def margin_ranking_loss(
    input1: Scores,
    input2: Scores,
    target: Labels,
    margin: float = 0.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.margin_ranking_loss: max(margin - target (input1 - input2), 0). (N,) or ().

    Raises:
        DataError: another number of dims.
    """
    if not input1.ndim == input2.ndim == target.ndim:
        raise DataError(
            f"inputs {input1.shape}, {input2.shape} and target {target.shape} must have equally many dims"
        )
    a, b, y = promoted(input1, input2, target)
    values = at_least(-y * (a - b) + margin, 0.0)
    return reduced(values, reduction_name(size_average, reduce, reduction))


def soft_margin_loss(
    input: Scores,
    target: Labels,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.soft_margin_loss: log(1 + exp(-target input)), target 1 or -1. Any shape.

    As in torch it is infinite where the exponential overflows; the target gets no gradient.

    Raises:
        DataError: another shape of the target.
    """
    same_shape(input, target)
    x, y = promoted(input, target)
    values = jnp.log1p(jnp.exp(-jax.lax.stop_gradient(y) * x))
    return reduced(values, reduction_name(size_average, reduce, reduction))


def multi_margin_loss(
    input: Scores,
    target: Labels,
    p: int = 1,
    margin: float = 1.0,
    weight: Weight = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.multi_margin_loss: weight of the label y times the mean over the C classes j, but for y,
    of max(margin - input[y] + input[j], 0)^p. (N, C) and (N,), or (C,) and () or (1,). p is 1 or 2.

    Raises:
        DataError: other shapes; (not under jit) a label outside [0, C), which gives NaN under jit.
        UsageError: another p, unknown reduction.
    """
    _check_margin(p, weight)
    rows = input[None] if input.ndim == 1 else input
    if rows.ndim != 2 or target.ndim > 1 or target.size != len(rows):
        raise DataError(
            f"target of shape {target.shape} does not fit an input of shape {input.shape}: "
            "they must be (N,) and (N, C)"
        )
    classes = input.shape[-1]
    labels = target.reshape(-1)
    outside = (labels < 0) | (labels >= classes)
    refuse_where(outside, f"a label is out of range: it must be in [0, {classes})")
    if weight is not None and weight.shape != (classes,):
        raise DataError(
            f"weight of shape {weight.shape} must have one number for each of the {classes} classes"
        )
    label = jnp.where(outside, 0, labels)
    gaps = margin - jnp.take_along_axis(rows, label[:, None], -1) + rows
    hinges = jnp.where((gaps > 0) & (jnp.arange(classes) != label[:, None]), gaps, 0) ** p
    hinges = hinges if weight is None else hinges * weight.astype(hinges.dtype)[label][:, None]
    values = jnp.where(outside, jnp.nan, hinges.sum(-1) / classes)
    values = values if target.ndim else values[0]
    return reduced(values, reduction_name(size_average, reduce, reduction))


def _check_margin(p: int, weight: Weight) -> None:
    if p not in (1, 2):
        raise UsageError(f"p must be 1 or 2, not {p}")
    if weight is not None and weight.ndim != 1:
        raise UsageError(f"weight must have one axis, not the shape {weight.shape}")


def multilabel_margin_loss(
    input: Scores,
    target: Labels,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.multilabel_margin_loss: 1 / C times the sum over the labels y and the classes j that are
    no label of max(1 - input[y] + input[j], 0). (N, C) and (N, C), or (C,) and (C,).

    A row of the target lists the labels, and ends at its first -1.

    Raises:
        DataError: other shapes or dtypes; (not under jit) a label outside [-1, C), which gives NaN under jit.
    """
    same_shape(input, target)
    if input.ndim not in (1, 2) or not jnp.issubdtype(target.dtype, jnp.integer):
        raise DataError(f"target {target.dtype} {target.shape} must hold integers (N, C) or (C,)")
    classes = input.shape[-1]
    refuse_where(
        (target < -1) | (target >= classes), f"a label is out of range: it must be in [0, {classes})"
    )
    listed = jnp.cumsum(target < 0, -1) == 0
    outside = (listed & (target >= classes)).any(-1) | (target < -1).any(-1)
    label = jnp.where(listed & (target < classes), target, 0)
    is_label = ((label[..., None] == jnp.arange(classes)) & listed[..., None]).any(-2)
    gaps = 1 - jnp.take_along_axis(input, label, -1)[..., None] + input[..., None, :]
    counted = listed[..., None] & ~is_label[..., None, :] & (gaps > 0)
    values = jnp.where(counted, gaps, 0).sum((-2, -1)) / classes
    values = jnp.where(outside, jnp.nan, values)
    return reduced(values, reduction_name(size_average, reduce, reduction))


def multilabel_soft_margin_loss(
    input: Scores,
    target: Labels,
    weight: Weight = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Scores:
    """torch.nn.functional.multilabel_soft_margin_loss: the mean over the C classes of the binary cross-entropy.

    (N, C) and (N, C), classes last; the weight (C,) broadcasts.
    """
    x, y = promoted(input, target)
    values = y * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
    values = values if weight is None else values * weight.astype(x.dtype)
    return reduced(values.sum(-1) / x.shape[-1], reduction_name(size_average, reduce, reduction))


class HingeEmbeddingLoss(Loss):
    """torch.nn.HingeEmbeddingLoss: input where the target is 1, max(margin - input, 0) where it is -1. Any shape."""

    def __init__(
        self,
        margin: float = 1.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def __call__(self, input: Scores, target: Labels) -> Scores:
        return hinge_embedding_loss(input, target, margin=self.margin, reduction=self.reduction)


class MarginRankingLoss(Loss):
    """torch.nn.MarginRankingLoss: max(margin - target (input1 - input2), 0). (N,) or ()."""

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def __call__(self, input1: Scores, input2: Scores, target: Labels) -> Scores:
        return margin_ranking_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


class SoftMarginLoss(Loss):
    """torch.nn.SoftMarginLoss: log(1 + exp(-target input)). Any shape."""

    def __call__(self, input: Scores, target: Labels) -> Scores:
        return soft_margin_loss(input, target, reduction=self.reduction)


class MultiMarginLoss(WeightedLoss):
    """torch.nn.MultiMarginLoss of scores (N, C) and labels (N,), or (C,) and (); p is 1 or 2.

    Raises:
        UsageError: another p, a weight of more than one axis, unknown reduction.
    """

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Weight = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        _check_margin(p, weight)
        super().__init__(weight, size_average, reduce, reduction)
        self.p, self.margin = p, margin

    def __call__(self, input: Scores, target: Labels) -> Scores:
        return multi_margin_loss(
            input,
            target,
            p=self.p,
            margin=self.margin,
            weight=optional_value(self.weight),
            reduction=self.reduction,
        )


class MultiLabelMarginLoss(Loss):
    """torch.nn.MultiLabelMarginLoss of scores (N, C) and lists of labels (N, C) that end at their first -1."""

    def __call__(self, input: Scores, target: Labels) -> Scores:
        return multilabel_margin_loss(input, target, reduction=self.reduction)


class MultiLabelSoftMarginLoss(WeightedLoss):
    """torch.nn.MultiLabelSoftMarginLoss of scores (N, C) and targets (N, C) in [0, 1]; classes last."""

    def __call__(self, input: Scores, target: Labels) -> Scores:
        return multilabel_soft_margin_loss(
            input, target, optional_value(self.weight), reduction=self.reduction
        )
