"""A generator against a critic. Goodfellow et al. 2014, arXiv:1406.2661; Arjovsky et al. 2017, arXiv:1701.07875;
Gulrajani et al. 2017, arXiv:1704.00028."""

import inspect
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from jaxarch import catalog, nn
from jaxarch.errors import UsageError, unknown
from jaxarch.gan import feature_matching as apart
from jaxarch.gan import gradient_penalty, real_penalty
from jaxarch.losses import GAN_KINDS, gan_discriminator_loss, gan_generator_loss
from jaxarch.train import quality
from jaxarch.train.tasks import Batch, Task, Update

PENALTIES = ("between", "real")


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
    penalty_at: str = "between",
    weight_clip: float = 0.0,
    critic_steps: int = 3,
    conditional: bool = False,
    noise: int = 0,
    feature_matching: float = 0.0,
    real_target: float = 1.0,
) -> Task:
    """`critic_steps` updates of the critic, then one of the generator; scored by a Frechet distance of pixels.

    Args:
        critic, critic_variant: the catalog's name of the critic, whose output must be a score, not a probability.
        latent: the width of the noise (the generator's latent_dim).
        kind: the loss (`gan_discriminator_loss`).
        penalty: the factor of the gradient penalty; 0 for none.
        penalty_at: "between" real and generated pictures the slope shall be 1 (WGAN-GP), at "real" ones 0 (R1).
        weight_clip: the first WGAN's bound on each of the critic's weights, instead of a penalty; 0 for none.
        conditional: both take the labels.
        noise: how many numbers a picture the generator takes besides the latent, as StyleGAN's layers do.
        feature_matching: the factor of the squared distance of mean features.
        real_target: one-sided label smoothing: what a real picture's probability shall be
            (Salimans et al. 2016, arXiv:1606.03498).

    Raises:
        UsageError: unknown critic, variant, kind or penalty_at; an option that kind or critic do not take.
    """
    if kind not in GAN_KINDS:
        raise unknown("GAN loss", kind, GAN_KINDS)
    if penalty_at not in PENALTIES:
        raise unknown("penalty_at", penalty_at, PENALTIES)
    smoothed = real_target < 1
    if smoothed and kind not in ("minimax", "non_saturating"):
        raise UsageError(f"real_target has no effect on the loss {kind}, which knows no probabilities")
    catalog.arguments(critic, critic_variant)
    called = inspect.signature(catalog.model_class(critic).__call__).parameters
    if feature_matching and "return_features" not in called:
        raise UsageError(f"critic {critic} gives no features to match: leave feature_matching out")

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return Adversaries(model, catalog.create_model(critic, critic_variant, rngs=rngs))

    def draw(key: jax.Array, batch: Batch) -> Batch:
        keys = jax.random.split(key, 3)
        rows, dtype = len(batch["x"]), batch["x"].dtype
        return {
            **batch,
            "z": jax.random.normal(keys[0], (rows, latent), dtype),
            "mix": jax.random.uniform(keys[1], (rows,), dtype),
            **({"noise": jax.random.normal(keys[2], (rows, noise), dtype)} if noise else {}),
        }

    def labels(batch: Batch) -> tuple[Array, ...]:
        return (quality.clean_labels(batch),) if conditional else ()

    def generated(model: Any, batch: Batch) -> Array:
        return model.generator(batch["z"], *((batch["noise"],) if noise else ()), *labels(batch))

    def critic_loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        real, given = batch["x"], labels(batch)
        fake = generated(model, batch)

        def score(x: Array) -> Array:
            return model.critic(x, *given)

        scores = score(real), score(fake)
        loss = gan_discriminator_loss(*scores, kind=kind)
        if smoothed:
            loss = loss + (1 - real_target) * scores[0].mean()
        told = {"gap": scores[0].mean() - scores[1].mean()}
        if penalty:
            between = penalty_at == "between"
            slope = (
                gradient_penalty(score, real, fake, batch["mix"]) if between else real_penalty(score, real)
            )
            loss, told = loss + penalty * slope, {**told, "penalty": slope}
        return loss, told

    def generator_loss(model: Any, batch: Batch) -> Array:
        given = labels(batch)
        fake = generated(model, batch)
        if not feature_matching:
            return gan_generator_loss(model.critic(fake, *given), kind=kind)
        score, features = model.critic(fake, *given, return_features=True)
        _, wanted = model.critic(batch["x"], *given, return_features=True)
        return gan_generator_loss(score, kind=kind) + feature_matching * apart(wanted, features)

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = quality.counted(batch, batch["x"].dtype)
        fake = generated(model, batch)
        sums = quality.moment_sums(batch["x"], weight, "real")
        return sums | quality.moment_sums(fake, weight, "fake")

    return Task(
        updates={
            "critic": Update(loss=critic_loss, trains="critic.*", times=critic_steps, bound=weight_clip),
            "generator": Update(loss=generator_loss, trains="generator.*"),
        },
        tally=tally,
        summary=quality.compared,
        score=("frechet", False),
        wrap=wrap,
        draw=draw,
    )


def sample(model: Any, task_options: Any, sample: Batch, key: jax.Array, labels: Array, **_: Any) -> Array:
    """Pictures in [-1, 1] for labels (N,), which only a conditional generator heeds."""
    latent, layers = jax.random.split(key)
    given: tuple[Array, ...] = (jax.random.normal(latent, (len(labels), task_options.get("latent", 32))),)
    if noise := task_options.get("noise"):
        given += (jax.random.normal(layers, (len(labels), noise)),)
    return model.generator(*given, *((labels,) if task_options.get("conditional") else ()))
