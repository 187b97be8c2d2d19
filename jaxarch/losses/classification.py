"""Losses of class labels: cross-entropy and focal losses, of one label or of independent ones."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxarch.errors import UsageError
from jaxarch.losses.numerics import finite, lowest, reduce, upcast

TINY = float(np.float32(1e-12))  # torch keeps it in float32


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

    The mean is over the labels that are not ignored, each by its class's `weight`; over all rows for soft targets
    (*b, c), of which none is ignored. A label outside [0, c) gives NaN, where torch raises.

    Raises:
        UsageError: unknown reduction, or `ignore_index` with soft targets.
    """
    log_p = jax.nn.log_softmax(finite(upcast(logits)))
    scale = jnp.ones(log_p.shape[-1:], log_p.dtype) if weight is None else weight.astype(log_p.dtype)
    smooth = -(log_p * scale).mean(-1) if label_smoothing else jnp.zeros((), log_p.dtype)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if ignore_index != -100:
            raise UsageError("ignore_index has no meaning with soft targets: leave it out")
        hard = -(log_p * scale * labels.astype(log_p.dtype)).sum(-1)
        return reduce((1 - label_smoothing) * hard + label_smoothing * smooth, reduction)
    valid = labels != ignore_index
    in_range = (labels >= 0) & (labels < log_p.shape[-1])
    index = jnp.where(valid & in_range, labels, 0)
    label_weight = jnp.where(valid, scale[index], 0)
    hard = -jnp.take_along_axis(log_p, index[..., None], -1)[..., 0] * label_weight
    hard = jnp.where(in_range, hard, jnp.nan)
    loss = jnp.where(valid, (1 - label_smoothing) * hard + label_smoothing * smooth, 0)
    return reduce(loss, reduction, label_weight.sum())


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
    x = finite(upcast(logits))
    y = targets.astype(x.dtype)
    positive = y if pos_weight is None else y * pos_weight.astype(x.dtype)
    loss = positive * jax.nn.softplus(-x) + (1 - y) * jax.nn.softplus(x)
    return reduce(loss if weight is None else loss * weight.astype(x.dtype), reduction)


def binary_cross_entropy(
    probabilities: Float[Array, "*b"], targets: Shaped[Array, "*b"], *, reduction: str = "mean"
) -> Float[Array, "..."]:
    """torch.nn.functional.binary_cross_entropy: logarithms are at least -100. The targets get no gradient."""
    p = upcast(probabilities)
    return reduce(_bounded_entropy(p, jax.lax.stop_gradient(targets.astype(p.dtype))), reduction)


@jax.custom_jvp
def _bounded_entropy(p: Float[Array, "*b"], y: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return -(y * jnp.maximum(jnp.log(p), -100) + (1 - y) * jnp.maximum(jnp.log1p(-p), -100))


@_bounded_entropy.defjvp
def _bounded_entropy_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    p, y = primals
    # torch's derivative, which ignores the bound of the logarithms.
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

    `alpha` is a number or one for each class; the mean is over the labels that are not ignored.
    """
    log_p = jax.nn.log_softmax(finite(upcast(logits)))
    valid = labels != ignore_index
    index = jnp.where(valid, labels, 0)[..., None]
    others = jnp.where(jnp.arange(log_p.shape[-1]) == index, lowest(log_p.dtype), log_p)
    factor = jnp.asarray(alpha, log_p.dtype)
    factor = factor[index[..., 0]] if factor.ndim else factor
    # The logarithm of 1 - p has a gradient at p = 1, where the power of 1 - p may have none.
    modulated = factor * jnp.exp(gamma * jax.nn.logsumexp(others, -1))
    loss = cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return reduce(jnp.where(valid, modulated, 0) * loss, reduction, valid.sum())


def binary_focal_loss(
    logits: Float[Array, "*b"],
    targets: Shaped[Array, "*b"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """alpha_t (1 - p_t)^gamma cross-entropy on targets 0 or 1 (Lin et al. 2017).

    `alpha` weighs the positives and 1 - alpha the negatives; a negative `alpha` weighs neither.
    """
    x = finite(upcast(logits))
    y = targets.astype(x.dtype)
    factor = alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else jnp.ones_like(y)
    signed = x * (2 * y - 1)
    loss = jnp.exp(-gamma * jax.nn.softplus(signed)) * jax.nn.softplus(-signed)
    return reduce(factor * loss, reduction)
