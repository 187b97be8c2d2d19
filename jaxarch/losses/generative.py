"""Losses of variational autoencoders and of generative adversarial networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import unknown
from jaxarch.losses.classification import binary_cross_entropy, binary_cross_entropy_with_logits
from jaxarch.losses.numerics import finite, reduce, upcast
from jaxarch.losses.regression import mse_loss

GAN_KINDS = ("minimax", "non_saturating", "hinge", "wasserstein")


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
    """The negative evidence lower bound (Kingma and Welling 2014), summed over all elements.

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
    mean, log_variance = upcast(mu), upcast(logvar)
    divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum()
    total = errors[kind](reconstruction, x, reduction="sum") + beta * divergence
    return total / max(x.shape[0], 1) if reduction == "mean" else total


def gan_discriminator_loss(
    real: Float[Array, "*b"], fake: Float[Array, "*c"], *, kind: str = "minimax"
) -> Float[Array, ""]:
    """The loss of a discriminator, from its scores (logits) of real and generated samples.

    "minimax" and "non_saturating" (Goodfellow et al. 2014): binary cross-entropy; "hinge" (Lim and Ye 2017);
    "wasserstein" (Arjovsky et al. 2017), whose Lipschitz constraint is left to the caller.

    Raises:
        UsageError: unknown kind.
    """
    real, fake = finite(upcast(real)), finite(upcast(fake))
    match kind:
        case "minimax" | "non_saturating":
            return reduce(jax.nn.softplus(-real)) + reduce(jax.nn.softplus(fake))
        case "hinge":
            return reduce(jax.nn.relu(1 - real)) + reduce(jax.nn.relu(1 + fake))
        case "wasserstein":
            return reduce(fake) - reduce(real)
    raise unknown("GAN loss", kind, GAN_KINDS)


def gan_generator_loss(fake: Float[Array, "*b"], *, kind: str = "non_saturating") -> Float[Array, ""]:
    """The loss of a generator, from the discriminator's scores (logits) of its samples.

    "minimax": log(1 - p); "non_saturating": -log p; "hinge" and "wasserstein": minus the score.

    Raises:
        UsageError: unknown kind.
    """
    fake = finite(upcast(fake))
    match kind:
        case "minimax":
            return -reduce(jax.nn.softplus(fake))
        case "non_saturating":
            return reduce(jax.nn.softplus(-fake))
        case "hinge" | "wasserstein":
            return -reduce(fake)
    raise unknown("GAN loss", kind, GAN_KINDS)
