"""A diffusion model. Ho et al. 2020, arXiv:2006.11239; Ho and Salimans 2022, arXiv:2207.12598."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.diffusion import Diffusion, ddim_sample, drop_labels, guided
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


def make(steps: int = 1000, schedule: str = "cosine", prediction: str = "epsilon", drop: float = 0.1) -> Task:
    """Squared error of the predicted noise (or v) at random times; scored by it on the test images.

    A model with classes is given the label, but in a share `drop` of the rows the null class instead.

    Raises:
        UsageError: unknown schedule or prediction.
    """
    diffusion = Diffusion(steps, schedule, prediction)

    def draw(key: jax.Array, batch: Batch) -> Batch:
        x, (time_key, noise_key, drop_key) = batch["x"], jax.random.split(key, 3)
        return {
            **batch,
            "t": jax.random.randint(time_key, x.shape[:1], 0, steps),
            "noise": jax.random.normal(noise_key, x.shape, x.dtype),
            "uniform": jax.random.uniform(drop_key, x.shape[:1], x.dtype),
        }

    def errors(model: Any, batch: Batch, rate: float) -> Float[Array, " b"]:
        x, t, noise = batch["x"], batch["t"], batch["noise"]
        labels = None
        if model.num_classes:
            labels = drop_labels(batch["label"], batch["uniform"], rate, model.num_classes)
        predicted = denoiser(model)(diffusion.q_sample(x, t, noise), t, labels)
        return ((predicted - diffusion.target(x, t, noise)) ** 2).mean((1, 2, 3))

    def loss(model: Any, batch: Batch) -> Array:
        return errors(model, batch, drop).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = valid_weights(batch, batch["x"].dtype)
        return {"error": (errors(model, batch, 0.0) * weight).sum(), "count": weight.sum()}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("loss", higher_is_better=False),
        draw=draw,
        sample=functools.partial(sample, diffusion),
    )


def denoiser(model: Any) -> Any:
    """The network of a model that also adds the noise; a network is its own."""
    return getattr(model, "denoiser", model)


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The mean squared error."""
    return {"loss": sums["error"] / sums["count"]}


def sample(
    diffusion: Diffusion,
    model: Any,
    like: Batch,
    key: jax.Array,
    labels: Int[Array, " n"],
    *,
    guidance: float = 1.0,
    steps: int = 50,
    progress: Callable[[Array], None] | None = None,
) -> Float[Array, "n h w c"]:
    """Images in [-1, 1] for labels (N,), by DDIM in one compiled scan."""
    x = jax.random.normal(key, (len(labels), *like["x"].shape[1:]), like["x"].dtype)
    model = denoiser(model)
    if model.num_classes:
        predict = guided(model, labels.astype(jnp.int32), model.num_classes, guidance)
    else:
        predict = functools.partial(model, labels=None)
    return jax.jit(lambda x: ddim_sample(diffusion, predict, x, steps=steps, clip=1.0, progress=progress))(x)
