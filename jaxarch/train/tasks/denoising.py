"""A diffusion model. Ho et al. 2020, arXiv:2006.11239; Ho and Salimans 2022, arXiv:2207.12598."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxarch.diffusion import Diffusion, ddim_sample, drop_labels, guided
from jaxarch.train.quality import clean_labels, counted
from jaxarch.train.tasks import Batch, Task, Update


def make(steps: int = 1000, schedule: str = "cosine", prediction: str = "epsilon", drop: float = 0.1) -> Task:
    """Squared error of the predicted noise (or v) at random times; scored by it on the test pictures.

    A model with classes sees the label, but in a part `drop` of the rows the null class instead.

    Raises:
        UsageError: unknown schedule or prediction.
    """
    diffusion = Diffusion(steps, schedule, prediction)

    def draw(key: jax.Array, batch: Batch) -> Batch:
        x, (at, noise, kept) = batch["x"], jax.random.split(key, 3)
        return {
            **batch,
            "t": jax.random.randint(at, x.shape[:1], 0, steps),
            "noise": jax.random.normal(noise, x.shape, x.dtype),
            "kept": jax.random.uniform(kept, x.shape[:1], x.dtype),
        }

    def errors(model: Any, batch: Batch, rate: float) -> Array:
        x, t, noise = batch["x"], batch["t"], batch["noise"]
        labels = None
        if model.num_classes:
            labels = drop_labels(clean_labels(batch), batch["kept"], rate, model.num_classes)
        found = model(diffusion.q_sample(x, t, noise), t, labels)
        return ((found - diffusion.target(x, t, noise)) ** 2).mean((1, 2, 3))

    def loss(model: Any, batch: Batch) -> Array:
        return errors(model, batch, drop).mean()

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = counted(batch, batch["x"].dtype)
        return {"error": (errors(model, batch, 0.0) * weight).sum(), "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {"loss": sums["error"] / sums["count"]}

    return Task(
        updates={"model": Update(loss=loss)}, tally=tally, summary=summary, score=("loss", False), draw=draw
    )


def sample(
    model: Any,
    task_options: Mapping[str, Any],
    sample: Batch,
    key: jax.Array,
    labels: Array,
    *,
    guidance: float = 1.0,
    steps: int = 50,
    progress: Callable[[Array], None] | None = None,
) -> Array:
    """Pictures in [-1, 1] for labels (N,), by DDIM in one compiled scan."""
    known = {k: v for k, v in task_options.items() if k != "drop"}
    diffusion = Diffusion(**{"steps": 1000, "schedule": "cosine", **known})
    x = jax.random.normal(key, (len(labels), *sample["x"].shape[1:]), sample["x"].dtype)

    if model.num_classes:
        predict = guided(model, labels.astype(jnp.int32), model.num_classes, guidance)
    else:
        predict = functools.partial(model, labels=None)
    return jax.jit(lambda x: ddim_sample(diffusion, predict, x, steps=steps, clip=1.0, progress=progress))(x)
