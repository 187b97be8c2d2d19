"""Losses under torch's names, arguments and reductions; the classes, or the features, come last.

Everywhere: a mean over nothing (empty, all ignored, all weights zero) is 0, where torch gives NaN; infinite logits
and log-probabilities count as very large finite ones, so that a masked class (-inf) costs nothing where its
target is 0. A NaN that comes in goes out. Sums are taken in float32 at least.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, Shaped

from jaxarch.errors import UsageError, unknown
from jaxarch.nn import accumulation_dtype

REDUCTIONS = ("mean", "sum", "none")
GAN_KINDS = ("minimax", "non_saturating", "hinge", "wasserstein")
MININGS = ("hard", "semi_hard")
EPS = 1e-6  # torch adds it to every coordinate of a difference
TINY = float(np.float32(1e-12))  # torch keeps it in float32


# -------------------------------------------------------------------------------------------- classification


def cross_entropy(
    logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"] | Float[Array, "*b c"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Float[Array, " c"] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """torch.nn.functional.cross_entropy with the classes last.

    The mean is over the labels that count, each by its class's `weight`; over all rows for soft targets (*b, c),
    which know no ignored ones. A label that is no class gives NaN, where torch raises.

    Raises:
        UsageError: unknown reduction, or `ignore_index` with soft targets.
    """
    log_p = jax.nn.log_softmax(_finite(_wide(logits)))
    scale = jnp.ones(log_p.shape[-1:], log_p.dtype) if weight is None else weight.astype(log_p.dtype)
    smooth = -(log_p * scale).mean(-1) if label_smoothing else jnp.zeros((), log_p.dtype)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if ignore_index != -100:
            raise UsageError("ignore_index has no meaning with soft targets: leave it out")
        hard = -(log_p * scale * labels.astype(log_p.dtype)).sum(-1)
        return _reduce((1 - label_smoothing) * hard + label_smoothing * smooth, reduction)
    valid = labels != ignore_index
    known = (labels >= 0) & (labels < log_p.shape[-1])
    index = jnp.where(valid & known, labels, 0)
    own = jnp.where(valid, scale[index], 0)
    hard = -jnp.take_along_axis(log_p, index[..., None], -1)[..., 0] * own
    hard = jnp.where(known, hard, jnp.nan)
    loss = jnp.where(valid, (1 - label_smoothing) * hard + label_smoothing * smooth, 0)
    return _reduce(loss, reduction, own.sum())


def label_smoothing_loss(
    logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"],
    *,
    smoothing: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """Cross-entropy with targets (1 - smoothing) one-hot + smoothing / classes (Szegedy et al. 2016)."""
    return cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction
    )


def binary_cross_entropy_with_logits(
    logits: Float[Array, "*b"],
    targets: Shaped[Array, "*b"],
    *,
    weight: Float[Array, "..."] | None = None,
    pos_weight: Float[Array, "..."] | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """torch.nn.functional.binary_cross_entropy_with_logits; `weight` and `pos_weight` broadcast."""
    x = _finite(_wide(logits))
    y = targets.astype(x.dtype)
    positive = y if pos_weight is None else y * pos_weight.astype(x.dtype)
    loss = positive * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
    return _reduce(loss if weight is None else loss * weight.astype(x.dtype), reduction)


def binary_cross_entropy(
    probabilities: Float[Array, "*b"], targets: Shaped[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.binary_cross_entropy: logarithms end at -100. No gradient reaches the targets."""
    p = _wide(probabilities)
    return _reduce(_bounded_entropy(p, jax.lax.stop_gradient(targets.astype(p.dtype))), reduction)


@jax.custom_jvp
def _bounded_entropy(p, y):
    return -(y * jnp.maximum(jnp.log(p), -100) + (1 - y) * jnp.maximum(jnp.log1p(-p), -100))


@_bounded_entropy.defjvp
def _bounded_entropy_jvp(primals, tangents):
    p, y = primals
    # torch's own derivative, which the bound on the logarithms does not touch.
    return _bounded_entropy(p, y), tangents[0] * (p - y) / jnp.maximum(p * (1 - p), TINY)


def focal_loss(
    logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"],
    *,
    alpha: float | Float[Array, " c"] = 1.0,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """alpha (1 - p)^gamma cross-entropy, with p the probability of the label (Lin et al. 2017).

    `alpha` is a number or one for each class; the mean is over the labels that count.
    """
    log_p = jax.nn.log_softmax(_finite(_wide(logits)))
    valid = labels != ignore_index
    index = jnp.where(valid, labels, 0)[..., None]
    others = jnp.where(jnp.arange(log_p.shape[-1]) == index, _lowest(log_p.dtype), log_p)
    factor = jnp.asarray(alpha, log_p.dtype)
    factor = factor[index[..., 0]] if factor.ndim else factor
    # The logarithm of 1 - p has a gradient at p = 1, where the power of 1 - p may have none.
    modulated = factor * jnp.exp(gamma * jax.nn.logsumexp(others, -1))
    loss = cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return _reduce(jnp.where(valid, modulated, 0) * loss, reduction, valid.sum())


def binary_focal_loss(
    logits: Float[Array, "*b"],
    targets: Shaped[Array, "*b"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """alpha_t (1 - p_t)^gamma cross-entropy on targets 0 or 1 (Lin et al. 2017).

    `alpha` weighs the positives and 1 - alpha the negatives; a negative one weighs nothing.
    """
    x = _finite(_wide(logits))
    y = targets.astype(x.dtype)
    factor = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else jnp.ones_like(y)
    signed = x * (2 * y - 1)
    loss = jnp.exp(-gamma * jax.nn.softplus(signed)) * jax.nn.softplus(-signed)
    return _reduce(factor * loss, reduction)


# -------------------------------------------------------------------------------------------------- metric


def contrastive_loss(
    embeddings: Float[Array, "b d"], labels: Int[Array, " b"], *, temperature: float = 0.07
) -> Float[Array, ""]:
    """Supervised contrastive loss (Khosla et al. 2020); NT-Xent (Chen et al. 2020) where a label occurs twice.

    The mean over the anchors that have a positive of the mean over their positives of
    -log softmax(similarity / temperature), the anchor itself left out; similarity is the cosine.
    """
    x = _wide(embeddings)
    unit = x / jnp.maximum(_norm(x), 1e-12)[..., None]
    itself = jnp.eye(x.shape[0], dtype=bool)
    similarity = jnp.where(itself, _lowest(x.dtype), _finite(unit @ unit.T / temperature))
    log_p = jax.nn.log_softmax(similarity)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(-1)
    loss = -jnp.where(positive, log_p, 0).sum(-1) / jnp.maximum(count, 1).astype(x.dtype)
    return _reduce(loss, "mean", (count > 0).sum())


def pairwise_contrastive_loss(
    first: Float[Array, "*b d"],
    second: Float[Array, "*b d"],
    same: Shaped[Array, "*b"],
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """same * distance^2 + (1 - same) * max(margin - distance, 0)^2 (Hadsell et al. 2006)."""
    distance = _distance(_wide(first), _wide(second))
    y = same.astype(distance.dtype)
    return _reduce(y * distance**2 + (1 - y) * jax.nn.relu(margin - distance) ** 2, reduction)


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
    a, p, n = _wide(anchor), _wide(positive), _wide(negative)
    apart = _distance(a, n)
    apart = jnp.minimum(apart, _distance(p, n)) if swap else apart
    return _reduce(_at_least_zero(margin + _distance(a, p) - apart), reduction)


def mined_triplet_loss(
    embeddings: Float[Array, "b d"], labels: Int[Array, " b"], *, margin: float = 1.0, mining: str = "hard"
) -> Float[Array, ""]:
    """Triplets found in the batch: max(margin + d(anchor, positive) - d(anchor, negative), 0).

    "hard" (Hermans et al. 2017): each anchor with its farthest positive and its nearest negative; the mean over
    the anchors that have both. "semi_hard" (Schroff et al. 2015): each pair of anchor and positive with
    the nearest negative beyond the positive, or the farthest negative if none is beyond; the mean over the
    pairs whose anchor has a negative. Equal distances share the gradient.

    Raises:
        UsageError: unknown mining.
    """
    x = _wide(embeddings)
    distance = _norm(x[:, None] - x[None])
    far = jnp.finfo(x.dtype).max
    alike = labels[:, None] == labels
    positive = alike & ~jnp.eye(x.shape[0], dtype=bool)
    if x.shape[0] == 0:
        return jnp.zeros((), x.dtype)
    if mining == "hard":
        count = positive.any(-1) & ~alike.all(-1)
        together = jnp.where(positive, distance, -1).max(-1)
        apart = jnp.where(alike, far, distance).min(-1)
    elif mining == "semi_hard":
        count = positive & ~alike.all(-1)[:, None]
        together = distance
        beyond = ~alike[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest = jnp.where(beyond, distance[:, None, :], far).min(-1)
        farthest = jnp.where(alike, -1, distance).max(-1)
        apart = jnp.where(beyond.any(-1), nearest, farthest[:, None])
    else:
        raise unknown("mining", mining, MININGS)
    return _reduce(jnp.where(count, _at_least_zero(margin + together - apart), 0), "mean", count.sum())


# ---------------------------------------------------------------------------------------------- regression


def mse_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.mse_loss: the squared difference, without a half."""
    return _reduce(jnp.square(_wide(input) - _wide(target)), reduction)


def l1_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.l1_loss: no gradient where both are equal."""
    difference = _wide(input) - _wide(target)
    return _reduce(jnp.where(difference == 0, 0, jnp.abs(difference)), reduction)


def smooth_l1_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, beta: float = 1.0, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.smooth_l1_loss: Huber's loss over `beta`; the absolute difference for beta 0."""
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    return _reduce(_huber(_wide(input) - _wide(target), beta) / beta, reduction)


def huber_loss(
    input: Float[Array, "*b"], target: Float[Array, "*b"], *, delta: float = 1.0, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.huber_loss: half the square up to `delta`, then a line (Huber 1964)."""
    return _reduce(_huber(_wide(input) - _wide(target), delta), reduction)


def kl_div(
    input: Float[Array, "*b"],
    target: Float[Array, "*b"],
    *,
    log_target: bool = False,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """torch.nn.functional.kl_div of log-probabilities `input` against probabilities `target`.

    "mean" is over all elements, "batchmean" the sum over the first axis's length. A target of 0 takes no gradient.
    """
    x, y = _finite(_wide(input)), _wide(target)
    if log_target:
        y = _finite(y)
        loss = jnp.exp(y) * (y - x)
    else:
        y = jnp.where(y == 0, 0, y)
        loss = y * jnp.log(jnp.where(y == 0, 1, y)) - y * x
    return _reduce(loss, "mean", loss.shape[0]) if reduction == "batchmean" else _reduce(loss, reduction)


# ---------------------------------------------------------------------------------------------- generative


def vae_loss(
    reconstruction: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    mu: Float[Array, "b *z"],
    logvar: Float[Array, "b *z"],
    *,
    beta: float = 1.0,
    kind: str = "bce",
    reduction: str = "sum",
) -> Float[Array, ""]:
    """The negative evidence bound (Kingma and Welling 2014), summed over everything.

    Reconstruction error plus `beta` (Higgins et al. 2017) times KL(N(mu, exp(logvar)) | N(0, 1)). `kind`: "bce"
    takes `reconstruction` as probabilities, "bce_with_logits" as logits, "mse" takes squares. The `reduction`
    "mean" divides by the rows.

    Raises:
        UsageError: unknown kind or reduction.
    """
    errors: dict[str, Callable[..., Array]] = {
        "bce": binary_cross_entropy,
        "bce_with_logits": binary_cross_entropy_with_logits,
        "mse": mse_loss,
    }
    if kind not in errors:
        raise unknown("reconstruction", kind, errors)
    if reduction not in ("sum", "mean"):
        raise unknown("reduction", reduction, ("sum", "mean"))
    mean, log_variance = _wide(mu), _wide(logvar)
    divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum()
    total = errors[kind](reconstruction, x, reduction="sum") + beta * divergence
    return total / max(x.shape[0], 1) if reduction == "mean" else total


def gan_discriminator_loss(
    real: Float[Array, "*b"], fake: Float[Array, "*c"], *, kind: str = "minimax"
) -> Float[Array, ""]:
    """What a discriminator minimises, given its scores (logits) of real and generated samples.

    "minimax" and "non_saturating" (Goodfellow et al. 2014): binary cross-entropy; "hinge" (Lim and Ye 2017);
    "wasserstein" (Arjovsky et al. 2017), whose constraint on the discriminator is the caller's.

    Raises:
        UsageError: unknown kind.
    """
    real, fake = _finite(_wide(real)), _finite(_wide(fake))
    match kind:
        case "minimax" | "non_saturating":
            return _reduce(jax.nn.softplus(-real)) + _reduce(jax.nn.softplus(fake))
        case "hinge":
            return _reduce(jax.nn.relu(1 - real)) + _reduce(jax.nn.relu(1 + fake))
        case "wasserstein":
            return _reduce(fake) - _reduce(real)
    raise unknown("GAN loss", kind, GAN_KINDS)


def gan_generator_loss(fake: Float[Array, "*b"], *, kind: str = "non_saturating") -> Float[Array, ""]:
    """What a generator minimises, given the discriminator's scores (logits) of its samples.

    "minimax": log(1 - p); "non_saturating": -log p; "hinge" and "wasserstein": minus the score.

    Raises:
        UsageError: unknown kind.
    """
    fake = _finite(_wide(fake))
    match kind:
        case "minimax":
            return -_reduce(jax.nn.softplus(fake))
        case "non_saturating":
            return _reduce(jax.nn.softplus(-fake))
        case "hinge" | "wasserstein":
            return -_reduce(fake)
    raise unknown("GAN loss", kind, GAN_KINDS)


# --------------------------------------------------------------------------------------------- composition


def distillation_loss(
    student_logits: Float[Array, "*b c"],
    teacher_logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"],
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
) -> Float[Array, ""]:
    """alpha T^2 KL(teacher | student) at temperature T + (1 - alpha) cross-entropy (Hinton et al. 2015).

    Means over the labels that count. The teacher gets no gradient.
    """
    student = jax.nn.log_softmax(_finite(_wide(student_logits)) / temperature)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(_finite(_wide(teacher_logits))) / temperature)
    valid = labels != ignore_index
    apart = kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    soft = _reduce(jnp.where(valid, apart, 0), "mean", valid.sum()) * temperature**2
    hard = cross_entropy(student_logits, labels, ignore_index=ignore_index)
    return alpha * soft + (1 - alpha) * hard


def multi_task_loss(
    losses: Mapping[str, Num[Array, ""]], weights: Mapping[str, float] | None = None
) -> Float[Array, ""]:
    """The sum of named losses, each times its weight; all 1 if None.

    Raises:
        UsageError: there are no losses, or the names of losses and weights differ.
    """
    _same_names(losses, losses if weights is None else weights)
    return jnp.stack([_wide(x) * (1.0 if weights is None else weights[k]) for k, x in losses.items()]).sum()


def uncertainty_loss(
    losses: Mapping[str, Num[Array, ""]], log_variances: Mapping[str, Float[Array, ""]]
) -> Float[Array, ""]:
    """The sum of (exp(-s) loss + s) / 2 with a learned s = log variance for each task (Kendall et al. 2018).

    Raises:
        UsageError: there are no losses, or the names of losses and variances differ.
    """
    _same_names(losses, log_variances)
    parts = [
        (jnp.exp(-_wide(log_variances[k])) * _wide(x) + _wide(log_variances[k])) / 2
        for k, x in losses.items()
    ]
    return jnp.stack(parts).sum()


# -------------------------------------------------------------------------------------------------- shared


def _reduce(values, reduction="mean", count=None):
    """The sum over `count`, which is the number of values if None; 0 if nothing counts."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        count = jnp.asarray(values.size if count is None else count).astype(values.dtype)
        return values.sum() / jnp.where(count == 0, 1, count)
    raise unknown("reduction", reduction, REDUCTIONS)


def _same_names(losses, others) -> None:
    if not losses:
        raise UsageError("there are no losses to add")
    if differ := sorted(set(losses) ^ set(others)):
        raise UsageError(f"the names of losses and weights differ: {', '.join(differ)}")


def _wide(x):
    return x.astype(accumulation_dtype(x.dtype))


def _finite(x):
    return jnp.clip(x, _lowest(x.dtype), -_lowest(x.dtype))


def _lowest(dtype):
    """A number so low that its exponential is 0, with room for sums and differences."""
    return float(jnp.finfo(dtype).min) / 1024


def _at_least_zero(x):
    """torch's clamp: the gradient passes at 0 itself."""
    return jnp.where(x >= 0, x, 0)


def _norm(x):
    """The Euclidean norm, whose gradient at 0 is 0."""
    square = jnp.square(x).sum(-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _distance(a, b):
    return _norm(a - b + EPS)


def _huber(difference, delta):
    """Written as a sum, each part of which has a gradient everywhere."""
    size = jnp.abs(difference)
    near = jnp.minimum(size, delta)
    return 0.5 * near**2 + delta * (size - near)
