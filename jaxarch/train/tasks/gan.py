"""A generator against a critic. Goodfellow et al. 2014, arXiv:1406.2661; Gulrajani et al. 2017, arXiv:1704.00028."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxarch import catalog, nn, state
from jaxarch.errors import unknown
from jaxarch.train import quality
from jaxarch.train.losses import GAN_KINDS, gan_discriminator_loss, gan_generator_loss
from jaxarch.train.tasks import Batch, Task, Update


class Adversaries(nn.Module):
    """The generator and its critic."""

    def __init__(self, generator: nnx.Module, critic: nnx.Module):
        self.generator, self.critic = generator, critic


def make(
    critic: str = "discriminator",
    critic_variant: str = "digits",
    latent: int = 32,
    kind: str = "wasserstein",
    penalty: float = 10.0,
    critic_steps: int = 3,
    conditional: bool = False,
    feature_matching: float = 0.0,
    real_target: float = 1.0,
) -> Task:
    """`critic_steps` updates of the critic, then one of the generator; scored by a Frechet distance of pixels.

    Args:
        critic, critic_variant: the catalog's name of the critic, whose output must be a score, not a probability.
        latent: the width of the noise (the generator's latent_dim).
        kind: the loss (`gan_discriminator_loss`).
        penalty: the factor of the gradient penalty; 0 for none.
        conditional: both take the labels.
        feature_matching: the factor of the squared distance of mean features (Salimans et al. 2016,
            arXiv:1606.03498).
        real_target: one-sided label smoothing: what a real picture's probability shall be (same paper).

    Raises:
        UsageError: unknown critic, variant or kind.
    """
    if kind not in GAN_KINDS:
        raise unknown("GAN loss", kind, GAN_KINDS)
    catalog.arguments(critic, critic_variant)

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return Adversaries(model, catalog.create_model(critic, critic_variant, rngs=rngs))

    def draw(key: jax.Array, batch: Batch) -> Batch:
        noise, mix = jax.random.split(key)
        rows, dtype = len(batch["x"]), batch["x"].dtype
        return {
            **batch,
            "z": jax.random.normal(noise, (rows, latent), dtype),
            "mix": jax.random.uniform(mix, (rows,), dtype),
        }

    def labels(batch: Batch) -> tuple[Array, ...]:
        return (quality.clean_labels(batch),) if conditional else ()

    def critic_loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        real, given = batch["x"], labels(batch)
        fake = model.generator(batch["z"], *given)
        scores = model.critic(real, *given), model.critic(fake, *given)
        loss = gan_discriminator_loss(*scores, kind=kind)
        if real_target < 1 and kind in ("minimax", "non_saturating"):
            loss = loss + (1 - real_target) * scores[0].mean()
        told = {"gap": scores[0].mean() - scores[1].mean()}
        if penalty:
            between = mixed(batch["mix"], real, fake)
            slope = gradient_penalty(model.critic, between, *given)
            loss, told = loss + penalty * slope, {**told, "penalty": slope}
        return loss, told

    def generator_loss(model: Any, batch: Batch) -> Array:
        given = labels(batch)
        fake = model.generator(batch["z"], *given)
        if not feature_matching:
            return gan_generator_loss(model.critic(fake, *given), kind=kind)
        score, features = model.critic(fake, *given, return_features=True)
        _, wanted = model.critic(batch["x"], *given, return_features=True)
        apart = ((wanted.mean(0) - features.mean(0)) ** 2).mean()
        return gan_generator_loss(score, kind=kind) + feature_matching * apart

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = quality.counted(batch, batch["x"].dtype)
        fake = model.generator(batch["z"], *labels(batch))
        sums = quality.moment_sums(batch["x"], weight, "real")
        return sums | quality.moment_sums(fake, weight, "fake")

    return Task(
        updates={
            "critic": Update(loss=critic_loss, trains="critic.*", times=critic_steps),
            "generator": Update(loss=generator_loss, trains="generator.*"),
        },
        tally=tally,
        summary=quality.compared,
        score=("frechet", False),
        wrap=wrap,
        draw=draw,
    )


def mixed(mix: Array, real: Array, fake: Array) -> Array:
    """Points on the lines between real and generated rows; mix (B,) in [0, 1]."""
    mix = mix.reshape(-1, *(1,) * (real.ndim - 1))
    return mix * real + (1 - mix) * fake


def gradient_penalty(critic: nnx.Module, x: Array, *given: Array) -> Array:
    """mean (|d critic / d x| - 1)^2 over rows; the norm's gradient at 0 is 0, as torch's is."""
    graph, params, rest = state.split(critic)

    def total(x):
        return state.merge(graph, params, rest)(x, *given).sum()

    slopes = jax.grad(total)(x)
    squares = (slopes.reshape(len(x), -1) ** 2).sum(-1)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return ((norms - 1) ** 2).mean()


def sample(
    model: Any, task_options: Any, sample: Batch, key: jax.Array, labels: Array, **_: Any
) -> Array:
    """Pictures in [-1, 1] for labels (N,), which only a conditional generator heeds."""
    z = jax.random.normal(key, (len(labels), task_options.get("latent", 32)))
    return model.generator(z, *((labels,) if task_options.get("conditional") else ()))
