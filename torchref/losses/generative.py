"""Losses of variational autoencoders and of generative adversarial networks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref.losses.classification import binary_cross_entropy, binary_cross_entropy_with_logits
from torchref.losses.numerics import finite, reduce
from torchref.losses.regression import mse_loss

GAN_KINDS = ("minimax", "non_saturating", "hinge", "wasserstein")


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
    """The negative evidence lower bound (Kingma and Welling 2014), summed over all elements.

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
    """The loss of a discriminator, from its scores (logits) of real and generated samples.

    "minimax" and "non_saturating" (Goodfellow et al. 2014): binary cross-entropy; "hinge" (Lim and Ye 2017);
    "wasserstein" (Arjovsky et al. 2017), whose Lipschitz constraint is left to the caller.
    """
    if kind in ("minimax", "non_saturating"):
        is_real = binary_cross_entropy_with_logits(real, torch.ones_like(real))
        return is_real + binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    real, fake = finite(real), finite(fake)
    if kind == "hinge":
        return reduce(F.relu(1 - real)) + reduce(F.relu(1 + fake))
    if kind == "wasserstein":
        return reduce(fake) - reduce(real)
    raise ValueError(f"unknown GAN loss {kind!r}: known: {', '.join(GAN_KINDS)}")


def gan_generator_loss(fake: Tensor, *, kind: str = "non_saturating") -> Tensor:
    """The loss of a generator, from the discriminator's scores (logits) of its samples.

    "minimax": log(1 - p); "non_saturating": -log p; "hinge" and "wasserstein": minus the score.
    """
    if kind == "minimax":
        return -binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    if kind == "non_saturating":
        return binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if kind in ("hinge", "wasserstein"):
        return -reduce(finite(fake))
    raise ValueError(f"unknown GAN loss {kind!r}: known: {', '.join(GAN_KINDS)}")
