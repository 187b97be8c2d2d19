"""A generator against a critic. Goodfellow et al. 2014, arXiv:1406.2661; Arjovsky et al. 2017, arXiv:1701.07875;
Gulrajani et al. 2017, arXiv:1704.00028."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import catalog, gan, nn
from jaxarch.errors import UsageError, unknown
from jaxarch.losses import GAN_KINDS, gan_discriminator_loss, gan_generator_loss
from jaxarch.train import quality
from jaxarch.train.tasks import Batch, LossOutput, Score, Task, Update, valid_weights

PENALTIES = ("between", "real")
WITH_PROBABILITIES = ("minimax", "non_saturating")


class Adversaries(nn.Module):
    """The generator and its critic."""

    def __init__(self, generator: nnx.Module, critic: nnx.Module):
        self.generator, self.critic = generator, critic


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of `make` that its losses and its sampler read."""

    latent: int
    kind: str
    penalty: float
    penalty_at: str
    conditional: bool
    noise: int
    feature_matching: float
    real_target: float


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
        penalty_at: "between" real and generated images the slope shall be 1 (WGAN-GP), at "real" ones 0 (R1).
        weight_clip: the first WGAN's bound on each of the critic's weights, instead of a penalty; 0 for none.
        conditional: both take the labels.
        noise: how many numbers an image the generator takes besides the latent, as StyleGAN's layers do.
        feature_matching: the factor of the squared distance of mean features.
        real_target: one-sided label smoothing: what a real image's probability shall be
            (Salimans et al. 2016, arXiv:1606.03498).

    Raises:
        UsageError: unknown critic, variant, kind or penalty_at; an option that kind or critic do not take.
    """
    config = Config(
        latent=latent,
        kind=kind,
        penalty=penalty,
        penalty_at=penalty_at,
        conditional=conditional,
        noise=noise,
        feature_matching=feature_matching,
        real_target=real_target,
    )
    check(config, critic, critic_variant)

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return Adversaries(model, catalog.create_model(critic, critic_variant, rngs=rngs))

    return Task(
        updates={
            "critic": Update(
                loss=functools.partial(critic_loss, config),
                trains="critic.*",
                times=critic_steps,
                bound=weight_clip,
            ),
            "generator": Update(loss=functools.partial(generator_loss, config), trains="generator.*"),
        },
        tally=functools.partial(tally, config),
        summary=quality.compared,
        score=Score("frechet", higher_is_better=False),
        wrap=wrap,
        draw=functools.partial(draw, config),
        sample=functools.partial(sample, config),
    )


def check(config: Config, critic: str, critic_variant: str) -> None:
    """Raise a UsageError where options name nothing or have no effect."""
    if config.kind not in GAN_KINDS:
        raise unknown("GAN loss", config.kind, GAN_KINDS)
    if config.penalty_at not in PENALTIES:
        raise unknown("penalty_at", config.penalty_at, PENALTIES)
    if config.real_target < 1 and config.kind not in WITH_PROBABILITIES:
        raise UsageError(f"real_target has no effect on the loss {config.kind}, which knows no probabilities")
    catalog.arguments(critic, critic_variant)
    parameters = inspect.signature(catalog.model_class(critic).__call__).parameters
    if config.feature_matching and "return_features" not in parameters:
        raise UsageError(f"critic {critic} gives no features to match: leave feature_matching out")


def draw(config: Config, key: jax.Array, batch: Batch) -> Batch:
    """The batch with "z" (B, latent), "mix" (B,) of the penalty, and the generator's "noise" if it takes any."""
    latent_key, mix_key, noise_key = jax.random.split(key, 3)
    rows, dtype = len(batch["x"]), batch["x"].dtype
    return {
        **batch,
        "z": jax.random.normal(latent_key, (rows, config.latent), dtype),
        "mix": jax.random.uniform(mix_key, (rows,), dtype),
        **({"noise": jax.random.normal(noise_key, (rows, config.noise), dtype)} if config.noise else {}),
    }


def condition(config: Config, batch: Batch) -> tuple[Int[Array, " b"], ...]:
    """The labels as further arguments of generator and critic; none where neither takes them."""
    return (batch["label"],) if config.conditional else ()


def generate(config: Config, model: Any, batch: Batch) -> Float[Array, "b *s"]:
    """The generator's images from "z", "noise" and "label"."""
    noise = (batch["noise"],) if config.noise else ()
    return model.generator(batch["z"], *noise, *condition(config, batch))


def critic_loss(config: Config, model: Any, batch: Batch) -> LossOutput:
    """The critic's loss on real and generated images, and "gap", the difference of their mean scores."""
    real, fake = batch["x"], generate(config, model, batch)

    def score(x: Float[Array, "b *s"]) -> Float[Array, "b *o"]:
        return model.critic(x, *condition(config, batch))

    scores = score(real), score(fake)
    loss = gan_discriminator_loss(*scores, kind=config.kind)
    if config.real_target < 1:
        loss = loss + (1 - config.real_target) * scores[0].mean()
    metrics = {"gap": scores[0].mean() - scores[1].mean()}
    if config.penalty:
        penalty = slope_penalty(config, model.critic, real, fake, batch)
        loss, metrics = loss + config.penalty * penalty, {**metrics, "penalty": penalty}
    return loss, metrics


def slope_penalty(
    config: Config, critic: Any, real: Float[Array, "b *s"], fake: Float[Array, "b *s"], batch: Batch
) -> Float[Array, ""]:
    """The penalty on the critic's gradient with respect to the image, where `penalty_at` says."""
    inputs = condition(config, batch)
    if config.penalty_at == "between":
        return gan.gradient_penalty(critic, real, fake, batch["mix"], *inputs)
    return gan.real_penalty(critic, real, *inputs)


def generator_loss(config: Config, model: Any, batch: Batch) -> LossOutput:
    """The generator's loss by the critic's scores and, with `feature_matching`, by its mean features."""
    labels = condition(config, batch)
    fake = generate(config, model, batch)
    if not config.feature_matching:
        return gan_generator_loss(model.critic(fake, *labels), kind=config.kind)
    score, features = model.critic(fake, *labels, return_features=True)
    _, real_features = model.critic(batch["x"], *labels, return_features=True)
    distance = gan.feature_matching(real_features, features)
    return gan_generator_loss(score, kind=config.kind) + config.feature_matching * distance


def tally(config: Config, model: Any, batch: Batch) -> dict[str, Array]:
    """Sums of the moments of real and generated images."""
    weight = valid_weights(batch, batch["x"].dtype)
    fake = generate(config, model, batch)
    return quality.moment_sums(batch["x"], weight, "real") | quality.moment_sums(fake, weight, "fake")


def sample(
    config: Config, model: Any, like: Batch, key: jax.Array, labels: Int[Array, " n"]
) -> Float[Array, "n *s"]:
    """Images in [-1, 1] for labels (N,), which only a conditional generator takes."""
    latent_key, noise_key = jax.random.split(key)
    batch = {"z": jax.random.normal(latent_key, (len(labels), config.latent)), "label": labels}
    if config.noise:
        batch["noise"] = jax.random.normal(noise_key, (len(labels), config.noise))
    return generate(config, model, batch)
