"""Losses of embeddings by their distances and angles: functions and classes under torch's names."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.distance import PairwiseDistance, pairwise_distance
from jaxarch.nn.loss.reduction import Loss, at_least, promoted, reduced, reduction_name

Vectors = Float[Array, "..."]
Distance = Callable[[Array, Array], Array]
EPSILON = 1e-12  # torch adds it to the squared norms


def cosine_embedding_loss(
    input1: Vectors,
    input2: Vectors,
    target: Shaped[Array, "..."],
    margin: float = 0.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Vectors:
    """torch.nn.functional.cosine_embedding_loss: 1 - cos where the target is 1, max(cos - margin, 0) where -1.

    (N, D), (N, D) and (N,); without a batch axis (D,), (D,) and ().

    Raises:
        DataError: other shapes.
    """
    if target.ndim > 1 or not input1.ndim == input2.ndim == target.ndim + 1:
        raise DataError(
            f"inputs {input1.shape}, {input2.shape} and target {target.shape} must be (N, D), (N, D) and (N,)"
        )
    a, b, y = promoted(input1, input2, target)
    squares = ((a * a).sum(-1) + EPSILON) * ((b * b).sum(-1) + EPSILON)
    cosine = (a * b).sum(-1) / jnp.sqrt(squares)
    values = jnp.where(y == 1, 1 - cosine, 0) + jnp.where(y == -1, at_least(cosine - margin, 0.0), 0)
    return reduced(values, reduction_name(size_average, reduce, reduction))


def triplet_margin_loss(
    anchor: Vectors,
    positive: Vectors,
    negative: Vectors,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Vectors:
    """torch.nn.functional.triplet_margin_loss: max(margin + d(anchor, positive) - d(anchor, negative), 0).

    d is `pairwise_distance`; `swap` as in Balntas et al. 2016. (N, D) or (D,) each.

    Raises:
        DataError: another number of dims.
        UsageError: a margin not above 0, unknown reduction.
    """
    return triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=lambda a, b: pairwise_distance(a, b, p, eps),
        margin=margin,
        swap=swap,
        reduction=reduction_name(size_average, reduce, reduction),
    )


def triplet_margin_with_distance_loss(
    anchor: Vectors,
    positive: Vectors,
    negative: Vectors,
    *,
    distance_function: Distance | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Vectors:
    """torch.nn.functional.triplet_margin_with_distance_loss: `triplet_margin_loss` of any distance.

    Raises:
        DataError: another number of dims.
        UsageError: a margin not above 0, unknown reduction.
    """
    _check_margin(margin)
    if not anchor.ndim == positive.ndim == negative.ndim:
        shapes = f"{anchor.shape}, {positive.shape}, {negative.shape}"
        raise DataError(f"anchor, positive and negative {shapes} must have equally many dims")
    distance = pairwise_distance if distance_function is None else distance_function
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = jnp.minimum(far, distance(positive, negative))
    return reduced(at_least(margin + near - far, 0.0), reduction)


def _check_margin(margin: float) -> None:
    if margin <= 0:
        raise UsageError(f"margin must be above 0, not {margin}")


class CosineEmbeddingLoss(Loss):
    """torch.nn.CosineEmbeddingLoss of (N, D), (N, D) and targets (N,) of 1 or -1."""

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def __call__(self, input1: Vectors, input2: Vectors, target: Shaped[Array, "..."]) -> Vectors:
        return cosine_embedding_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


class TripletMarginLoss(Loss):
    """torch.nn.TripletMarginLoss of (N, D) each, or (D,).

    Raises:
        UsageError: a margin not above 0, unknown reduction.
    """

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
    ):
        super().__init__(size_average, reduce, reduction)
        _check_margin(margin)
        self.margin, self.p, self.eps, self.swap = margin, p, eps, swap

    def __call__(self, anchor: Vectors, positive: Vectors, negative: Vectors) -> Vectors:
        return triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=self.margin,
            p=self.p,
            eps=self.eps,
            swap=self.swap,
            reduction=self.reduction,
        )


class TripletMarginWithDistanceLoss(Loss):
    """torch.nn.TripletMarginWithDistanceLoss: `TripletMarginLoss` of any distance, by default `PairwiseDistance`.

    Raises:
        UsageError: a margin not above 0, unknown reduction.
    """

    def __init__(
        self,
        *,
        distance_function: Distance | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
    ):
        super().__init__(reduction=reduction)
        _check_margin(margin)
        self.distance_function = PairwiseDistance() if distance_function is None else distance_function
        self.margin, self.swap = margin, swap

    def __call__(self, anchor: Vectors, positive: Vectors, negative: Vectors) -> Vectors:
        return triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=self.distance_function,
            margin=self.margin,
            swap=self.swap,
            reduction=self.reduction,
        )
