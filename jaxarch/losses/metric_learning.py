"""Losses of embeddings, by the distances between examples of one class and of different ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxarch.errors import unknown
from jaxarch.losses.numerics import finite, lowest, reduce, upcast

MININGS = ("hard", "semi_hard")
EPS = 1e-6  # torch adds it to every coordinate of a difference


def contrastive_loss(
    embeddings: Float[Array, "b d"], labels: Int[Array, " b"], *, temperature: float = 0.07
) -> Float[Array, ""]:
    """Supervised contrastive loss (Khosla et al. 2020); NT-Xent (Chen et al. 2020) where a label occurs twice.

    The mean over the anchors that have a positive of the mean over their positives of
    -log softmax(similarity / temperature), the anchor itself left out; similarity is the cosine.
    """
    x = upcast(embeddings)
    unit = x / jnp.maximum(_norm(x), 1e-12)[..., None]
    diagonal = jnp.eye(x.shape[0], dtype=bool)
    similarity = jnp.where(diagonal, lowest(x.dtype), finite(unit @ unit.T / temperature))
    log_p = jax.nn.log_softmax(similarity)
    positive = (labels[:, None] == labels) & ~diagonal
    count = positive.sum(-1)
    loss = -jnp.where(positive, log_p, 0).sum(-1) / jnp.maximum(count, 1).astype(x.dtype)
    return reduce(loss, "mean", (count > 0).sum())


def pairwise_contrastive_loss(
    first: Float[Array, "*b d"],
    second: Float[Array, "*b d"],
    same: Shaped[Array, "*b"],
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """same * distance^2 + (1 - same) * max(margin - distance, 0)^2 (Hadsell et al. 2006)."""
    distance = _distance(upcast(first), upcast(second))
    y = same.astype(distance.dtype)
    return reduce(y * distance**2 + (1 - y) * jax.nn.relu(margin - distance) ** 2, reduction)


def triplet_loss(
    anchor: Float[Array, "*b d"],
    positive: Float[Array, "*b d"],
    negative: Float[Array, "*b d"],
    *,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """torch.nn.functional.triplet_margin_loss of Euclidean distances; `swap` as in Balntas et al. 2016."""
    a, p, n = upcast(anchor), upcast(positive), upcast(negative)
    negative_distance = _distance(a, n)
    negative_distance = jnp.minimum(negative_distance, _distance(p, n)) if swap else negative_distance
    return reduce(_at_least_zero(margin + _distance(a, p) - negative_distance), reduction)


def mined_triplet_loss(
    embeddings: Float[Array, "b d"], labels: Int[Array, " b"], *, margin: float = 1.0, mining: str = "hard"
) -> Float[Array, ""]:
    """Triplets mined from the batch: max(margin + d(anchor, positive) - d(anchor, negative), 0).

    "hard" (Hermans et al. 2017): each anchor with its farthest positive and its nearest negative; the mean over
    the anchors that have both. "semi_hard" (Schroff et al. 2015): each pair of anchor and positive with
    the nearest negative farther than the positive, or the farthest negative if none is; the mean over the
    pairs whose anchor has a negative. Equal distances share the gradient.

    Raises:
        UsageError: unknown mining.
    """
    x = upcast(embeddings)
    distance = _norm(x[:, None] - x[None])
    largest = jnp.finfo(x.dtype).max
    same_label = labels[:, None] == labels
    positive = same_label & ~jnp.eye(x.shape[0], dtype=bool)
    if x.shape[0] == 0:
        return jnp.zeros((), x.dtype)
    if mining == "hard":
        valid = positive.any(-1) & ~same_label.all(-1)
        positive_distance = jnp.where(positive, distance, -1).max(-1)
        negative_distance = jnp.where(same_label, largest, distance).min(-1)
    elif mining == "semi_hard":
        valid = positive & ~same_label.all(-1)[:, None]
        positive_distance = distance
        is_farther = ~same_label[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest = jnp.where(is_farther, distance[:, None, :], largest).min(-1)
        farthest = jnp.where(same_label, -1, distance).max(-1)
        negative_distance = jnp.where(is_farther.any(-1), nearest, farthest[:, None])
    else:
        raise unknown("mining", mining, MININGS)
    loss = _at_least_zero(margin + positive_distance - negative_distance)
    return reduce(jnp.where(valid, loss, 0), "mean", valid.sum())


def _at_least_zero(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """torch's clamp, whose gradient at 0 itself is 1."""
    return jnp.where(x >= 0, x, 0)


def _norm(x: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """The Euclidean norm, whose gradient at 0 is 0."""
    square = jnp.square(x).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _distance(a: Float[Array, "*b d"], b: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    return _norm(a - b + EPS)
