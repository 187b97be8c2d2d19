"""A variational autoencoder. Kingma and Welling 2013, arXiv:1312.6114."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from jaxarch.losses import vae_loss
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


def make(latent: int = 8, beta: float = 1.0, kind: str = "bce") -> Task:
    """The negative evidence bound per row, `beta` times the divergence (Higgins et al. 2017); scored by it."""

    def draw(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "eps": jax.random.normal(key, (len(batch["x"]), latent), batch["x"].dtype)}

    def loss(model: Any, batch: Batch) -> Array:
        out, mu, logvar = model(batch["x"], batch["eps"])
        return vae_loss(out, batch["x"], mu, logvar, beta=beta, kind=kind, reduction="mean")

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = valid_weights(batch, batch["x"].dtype)
        out, mu, logvar = model(batch["x"], batch["eps"])

        def row(*parts: Array) -> Array:
            return vae_loss(*(p[None] for p in parts), kind=kind, reduction="sum")

        bound = jax.vmap(row)(out, batch["x"], mu, logvar)
        error = ((out - batch["x"]) ** 2).mean(-1)
        return {"bound": (bound * weight).sum(), "error": (error * weight).sum(), "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {"bound": sums["bound"] / sums["count"], "reconstruction": sums["error"] / sums["count"]}

    def sample(model: Any, like: Batch, key: jax.Array, labels: Int[Array, " n"]) -> Float[Array, "n d"]:
        """Rows decoded from the prior; of labels (N,) only the number counts."""
        return model.decode(jax.random.normal(key, (len(labels), latent))) * 2 - 1

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("bound", higher_is_better=False),
        draw=draw,
        sample=sample,
    )
