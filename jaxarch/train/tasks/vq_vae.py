"""An autoencoder with a discrete latent. van den Oord et al. 2017, arXiv:1711.00937."""

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
from jaxtyping import Array

from jaxarch.errors import UsageError
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


def make(codes: int = 32) -> Task:
    """Squared error plus the model's own loss; perplexity, usage and revived codes of the codebook are logged.

    `codes`: the size of the codebook, for the draws that revive dead codes.
    """

    def draw(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "revival": jax.random.uniform(key, (codes,), batch["x"].dtype)}

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        out, model_loss, _, perplexity, usage = model(batch["x"], batch["revival"])
        error = ((out - batch["x"]) ** 2).mean()
        metrics = {"reconstruction": error, "perplexity": perplexity, "usage": usage}
        quantizer = model.quantizer
        if quantizer.revive_below > 0:
            # A code that was dead starts again at the bound, where no living one is.
            metrics["revived"] = (quantizer.cluster_size[...] <= quantizer.revive_below).sum()
        return error + model_loss, metrics

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        weight = valid_weights(batch, batch["x"].dtype)
        out, _, ids, _, _ = model(batch["x"])
        error = ((out - batch["x"]) ** 2).mean((1, 2, 3))
        used = jax.nn.one_hot(ids, codes, dtype=weight.dtype).sum(1)
        return {
            "error": (error * weight).sum(),
            "count": weight.sum(),
            "used": (used * weight[:, None]).sum(0),
        }

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("reconstruction", higher_is_better=False),
        draw=draw,
        sample=sample,
    )


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The mean squared error of reconstructions, and how many codes they use."""
    return {"reconstruction": sums["error"] / sums["count"], "codes": (sums["used"] > 0).sum()}


def sample(model: Any, like: Batch, key: jax.Array, labels: Array) -> NoReturn:
    """Refuses: codes have no prior here."""
    raise UsageError(
        "a VQ-VAE has no prior to sample from: train one over its codes, or show reconstructions"
    )
