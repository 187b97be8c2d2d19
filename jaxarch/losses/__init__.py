"""Losses under torch's names, arguments and reductions; the classes, or the features, come last.

Everywhere: a mean of no elements (an empty batch, all labels ignored, all weights zero) is 0, where torch gives NaN;
infinite logits and log-probabilities are clipped to very large finite ones, so that a masked class (-inf) adds
nothing where its target is 0. A NaN input gives NaN. Sums are accumulated in float32 at least.
"""

from jaxarch.losses.classification import (
    TINY,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    binary_focal_loss,
    cross_entropy,
    focal_loss,
    label_smoothing_loss,
)
from jaxarch.losses.composition import distillation_loss, multi_task_loss, uncertainty_loss
from jaxarch.losses.generative import GAN_KINDS, gan_discriminator_loss, gan_generator_loss, vae_loss
from jaxarch.losses.metric_learning import (
    EPS,
    MININGS,
    contrastive_loss,
    mined_triplet_loss,
    pairwise_contrastive_loss,
    triplet_loss,
)
from jaxarch.losses.numerics import REDUCTIONS
from jaxarch.losses.regression import huber_loss, kl_div, l1_loss, mse_loss, smooth_l1_loss

__all__ = [
    "EPS",
    "GAN_KINDS",
    "MININGS",
    "REDUCTIONS",
    "TINY",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "binary_focal_loss",
    "contrastive_loss",
    "cross_entropy",
    "distillation_loss",
    "focal_loss",
    "gan_discriminator_loss",
    "gan_generator_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "label_smoothing_loss",
    "mined_triplet_loss",
    "mse_loss",
    "multi_task_loss",
    "pairwise_contrastive_loss",
    "smooth_l1_loss",
    "triplet_loss",
    "uncertainty_loss",
    "vae_loss",
]
