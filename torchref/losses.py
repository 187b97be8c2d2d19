"""Losses with jaxarch's names, arguments and reductions; the classes, or the features, come last.

Everywhere: a mean of no elements (empty, all ignored, all weights zero) is 0, where torch gives NaN; infinite
logits and log-probabilities are clipped to very large finite ones, so that a masked class (-inf) adds nothing
where its target is 0. A NaN input gives NaN. An unknown choice is a ValueError.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

REDUCTIONS = ("mean", "sum", "none")
GAN_KINDS = ("minimax", "non_saturating", "hinge", "wasserstein")
MININGS = ("hard", "semi_hard")


# -------------------------------------------------------------------------------------------- classification


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.cross_entropy with the classes last: logits (*b, c), labels (*b) or soft (*b, c).

    The mean is over the labels that count, each by its class's `weight`; over all rows for soft targets, none
    of which are ignored.
    """
    soft = labels.is_floating_point()
    if soft and ignore_index != -100:
        raise ValueError("ignore_index has no meaning with soft targets: leave it out")
    loss = F.cross_entropy(
        _finite(logits).flatten(0, -2),
        labels.flatten(0, -2) if soft else labels.flatten(),
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    ).reshape(logits.shape[:-1])
    if soft:
        return _reduce(loss, reduction)
    valid = labels != ignore_index
    weights = valid if weight is None else torch.where(valid, weight[torch.where(valid, labels, 0)], 0)
    return _reduce(loss, reduction, weights.sum())


def label_smoothing_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy with targets (1 - smoothing) one-hot + smoothing / classes (Szegedy et al. 2016)."""
    return cross_entropy(
        logits, labels, ignore_index=ignore_index, label_smoothing=smoothing, reduction=reduction
    )


def binary_cross_entropy_with_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.binary_cross_entropy_with_logits; `weight` and `pos_weight` broadcast."""
    x = _finite(logits)
    y = targets.to(x.dtype)
    loss = F.binary_cross_entropy_with_logits(x, y, weight=weight, pos_weight=pos_weight, reduction="none")
    return _reduce(loss, reduction)


def binary_cross_entropy(probabilities: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.binary_cross_entropy: logarithms end at -100. No gradient reaches the targets."""
    y = targets.detach().to(probabilities.dtype)
    return _reduce(F.binary_cross_entropy(probabilities, y, reduction="none"), reduction)


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float | Tensor = 1.0,
    gamma: float = 2.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """alpha (1 - p)^gamma cross-entropy, with p the probability of the label (Lin et al. 2017).

    `alpha` is a number or one for each class; the mean is over the labels that count.
    """
    log_p = F.log_softmax(_finite(logits), -1)
    valid = labels != ignore_index
    index = torch.where(valid, labels, 0)[..., None]
    others = log_p.masked_fill(torch.arange(log_p.shape[-1]) == index, _lowest(log_p.dtype))
    factor = torch.as_tensor(alpha, dtype=log_p.dtype)
    factor = factor[index[..., 0]] if factor.ndim else factor
    # The logarithm of 1 - p has a gradient at p = 1, where the power of 1 - p may have none.
    modulated = factor * torch.exp(gamma * torch.logsumexp(others, -1))
    loss = cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return _reduce(torch.where(valid, modulated, 0) * loss, reduction, valid.sum())


def binary_focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """alpha_t (1 - p_t)^gamma cross-entropy on targets 0 or 1 (Lin et al. 2017).

    `alpha` weighs the positives and 1 - alpha the negatives; a negative one weighs nothing.
    """
    x = _finite(logits)
    y = targets.to(x.dtype)
    factor = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else torch.ones_like(y)
    signed = x * (2 * y - 1)
    loss = torch.exp(gamma * F.logsigmoid(-signed)) * -F.logsigmoid(signed)
    return _reduce(factor * loss, reduction)


# -------------------------------------------------------------------------------------------------- metric


def contrastive_loss(embeddings: Tensor, labels: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020); NT-Xent (Chen et al. 2020) where a label occurs twice.

    The mean over the anchors that have a positive of the mean over their positives of
    -log softmax(similarity / temperature), the anchor itself left out; similarity is the cosine.
    """
    x = embeddings
    unit = F.normalize(x, dim=-1)
    diagonal = torch.eye(x.shape[0], dtype=torch.bool)
    similarity = _finite(unit @ unit.T / temperature).masked_fill(diagonal, _lowest(x.dtype))
    log_p = F.log_softmax(similarity, -1)
    positive = (labels[:, None] == labels) & ~diagonal
    count = positive.sum(-1)
    loss = -torch.where(positive, log_p, 0).sum(-1) / count.clamp(min=1)
    return _reduce(loss, "mean", (count > 0).sum())


def pairwise_contrastive_loss(
    first: Tensor,
    second: Tensor,
    same: Tensor,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """same * distance^2 + (1 - same) * max(margin - distance, 0)^2 (Hadsell et al. 2006)."""
    distance = F.pairwise_distance(first, second)
    y = same.to(distance.dtype)
    return _reduce(y * distance**2 + (1 - y) * F.relu(margin - distance) ** 2, reduction)


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """torch.nn.functional.triplet_margin_loss of Euclidean distances; `swap` as in Balntas et al. 2016."""
    loss = F.triplet_margin_loss(anchor, positive, negative, margin=margin, swap=swap, reduction="none")
    return _reduce(loss, reduction)


def mined_triplet_loss(
    embeddings: Tensor, labels: Tensor, *, margin: float = 1.0, mining: str = "hard"
) -> Tensor:
    """Triplets mined from the batch: max(margin + d(anchor, positive) - d(anchor, negative), 0).

    "hard" (Hermans et al. 2017): each anchor with its farthest positive and its nearest negative; the mean
    over the anchors that have both. "semi_hard" (Schroff et al. 2015): each pair of anchor and positive with
    the nearest negative farther than the positive, or the farthest negative if none is; the mean over the
    pairs whose anchor has a negative. Equal distances share the gradient.
    """
    x = embeddings
    distance = (x[:, None] - x[None]).norm(dim=-1)
    largest = torch.finfo(x.dtype).max
    same = labels[:, None] == labels
    positive = same & ~torch.eye(x.shape[0], dtype=torch.bool)
    if x.shape[0] == 0:
        return x.sum()
    if mining == "hard":
        count = positive.any(-1) & ~same.all(-1)
        positive_distance = torch.where(positive, distance, -1).amax(-1)
        negative_distance = torch.where(same, largest, distance).amin(-1)
    elif mining == "semi_hard":
        count = positive & ~same.all(-1)[:, None]
        positive_distance = distance
        farther = ~same[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest = torch.where(farther, distance[:, None, :], largest).amin(-1)
        farthest = torch.where(same, -1, distance).amax(-1)
        negative_distance = torch.where(farther.any(-1), nearest, farthest[:, None])
    else:
        raise ValueError(f"unknown mining {mining!r}: known: {', '.join(MININGS)}")
    loss = (margin + positive_distance - negative_distance).clamp(min=0)
    return _reduce(torch.where(count, loss, 0), "mean", count.sum())


# ---------------------------------------------------------------------------------------------- regression


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.mse_loss: the squared difference, without a half."""
    return _reduce(F.mse_loss(input, target, reduction="none"), reduction)


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.l1_loss: no gradient where both are equal."""
    return _reduce(F.l1_loss(input, target, reduction="none"), reduction)


def smooth_l1_loss(input: Tensor, target: Tensor, *, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.smooth_l1_loss: Huber's loss over `beta`; the absolute difference for beta 0."""
    return _reduce(F.smooth_l1_loss(input, target, beta=beta, reduction="none"), reduction)


def huber_loss(input: Tensor, target: Tensor, *, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.huber_loss: half the square up to `delta`, then a line (Huber 1964)."""
    return _reduce(F.huber_loss(input, target, delta=delta, reduction="none"), reduction)


def kl_div(input: Tensor, target: Tensor, *, log_target: bool = False, reduction: str = "mean") -> Tensor:
    """torch.nn.functional.kl_div of log-probabilities `input` against probabilities `target`.

    "mean" is over all elements, "batchmean" the sum over the first axis's length. A target of 0 takes no gradient.
    """
    y = _finite(target) if log_target else torch.where(target == 0, 0, target)
    loss = F.kl_div(_finite(input), y, log_target=log_target, reduction="none")
    return _reduce(loss, "mean", loss.shape[0]) if reduction == "batchmean" else _reduce(loss, reduction)


# ---------------------------------------------------------------------------------------------- generative


def vae_loss(
    reconstruction: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    beta: float = 1.0,
    kind: str = "bce",
    reduction: str = "sum",
) -> Tensor:
    """The negative evidence bound (Kingma and Welling 2014), summed over everything.

    Reconstruction error plus `beta` (Higgins et al. 2017) times KL(N(mu, exp(logvar)) | N(0, 1)). `kind`: "bce"
    takes `reconstruction` as probabilities, "bce_with_logits" as logits, "mse" takes squares. The `reduction`
    "mean" divides by the rows.
    """
    errors: dict[str, Callable[..., Tensor]] = {
        "bce": binary_cross_entropy,
        "bce_with_logits": binary_cross_entropy_with_logits,
        "mse": mse_loss,
    }
    if kind not in errors:
        raise ValueError(f"unknown reconstruction {kind!r}: known: {', '.join(errors)}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"unknown reduction {reduction!r}: known: sum, mean")
    divergence = -0.5 * (1 + logvar - mu**2 - torch.exp(logvar)).sum()
    total = errors[kind](reconstruction, x, reduction="sum") + beta * divergence
    return total / max(x.shape[0], 1) if reduction == "mean" else total


def gan_discriminator_loss(real: Tensor, fake: Tensor, *, kind: str = "minimax") -> Tensor:
    """The discriminator's loss, given its scores (logits) of real and generated samples.

    "minimax" and "non_saturating" (Goodfellow et al. 2014): binary cross-entropy; "hinge" (Lim and Ye 2017);
    "wasserstein" (Arjovsky et al. 2017), whose constraint on the discriminator is the caller's.
    """
    if kind in ("minimax", "non_saturating"):
        is_real = binary_cross_entropy_with_logits(real, torch.ones_like(real))
        return is_real + binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    real, fake = _finite(real), _finite(fake)
    if kind == "hinge":
        return _reduce(F.relu(1 - real)) + _reduce(F.relu(1 + fake))
    if kind == "wasserstein":
        return _reduce(fake) - _reduce(real)
    raise ValueError(f"unknown GAN loss {kind!r}: known: {', '.join(GAN_KINDS)}")


def gan_generator_loss(fake: Tensor, *, kind: str = "non_saturating") -> Tensor:
    """The generator's loss, given the discriminator's scores (logits) of its samples.

    "minimax": log(1 - p); "non_saturating": -log p; "hinge" and "wasserstein": minus the score.
    """
    if kind == "minimax":
        return -binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    if kind == "non_saturating":
        return binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if kind in ("hinge", "wasserstein"):
        return -_reduce(_finite(fake))
    raise ValueError(f"unknown GAN loss {kind!r}: known: {', '.join(GAN_KINDS)}")


# --------------------------------------------------------------------------------------------- composition


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 2.0,
    alpha: float = 0.5,
    ignore_index: int = -100,
) -> Tensor:
    """alpha T^2 KL(teacher | student) at temperature T + (1 - alpha) cross-entropy (Hinton et al. 2015).

    Means over the labels that count. The teacher gets no gradient.
    """
    student = F.log_softmax(_finite(student_logits) / temperature, -1)
    teacher = F.log_softmax(_finite(teacher_logits.detach()) / temperature, -1)
    valid = labels != ignore_index
    divergence = kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    soft = _reduce(torch.where(valid, divergence, 0), "mean", valid.sum()) * temperature**2
    hard = cross_entropy(student_logits, labels, ignore_index=ignore_index)
    return alpha * soft + (1 - alpha) * hard


def multi_task_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """The sum of named losses, each times its weight; all 1 if None. Names that differ are a ValueError."""
    _same_names(losses, losses if weights is None else weights)
    return torch.stack([x * (1.0 if weights is None else weights[k]) for k, x in losses.items()]).sum()


def uncertainty_loss(losses: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]) -> Tensor:
    """The sum of (exp(-s) loss + s) / 2 with a learned s = log variance for each task (Kendall et al. 2018)."""
    _same_names(losses, log_variances)
    parts = [(torch.exp(-log_variances[k]) * x + log_variances[k]) / 2 for k, x in losses.items()]
    return torch.stack(parts).sum()


# -------------------------------------------------------------------------------------------------- shared


def _reduce(values: Tensor, reduction: str = "mean", count: Tensor | int | None = None) -> Tensor:
    """The sum over `count`, which is the number of values if None; 0 if nothing counts."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        count = torch.as_tensor(values.numel() if count is None else count)
        return values.sum() / torch.where(count == 0, 1, count)
    raise ValueError(f"unknown reduction {reduction!r}: known: {', '.join(REDUCTIONS)}")


def _same_names(losses: Mapping[str, Tensor], others: Mapping[str, object]) -> None:
    if not losses:
        raise ValueError("there are no losses to add")
    if differ := sorted(set(losses) ^ set(others)):
        raise ValueError(f"the names of losses and weights differ: {', '.join(differ)}")


def _finite(x: Tensor) -> Tensor:
    return x.clamp(_lowest(x.dtype), -_lowest(x.dtype))


def _lowest(dtype: torch.dtype) -> float:
    """A number so low that its exponential is 0, with room for sums and differences."""
    return torch.finfo(dtype).min / 1024
