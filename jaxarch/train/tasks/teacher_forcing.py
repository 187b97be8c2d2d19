"""Sequence to sequence with scheduled sampling. Bengio et al. 2015, arXiv:1506.03099."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import UsageError
from jaxarch.losses import cross_entropy
from jaxarch.nn.module import Buffer
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_weights


class ScheduledSampling(nn.Module):
    """A model (src, tgt, lengths, coins) -> logits that counts its training batches.

    -> logits and the ratio of teacher forcing at that count: `start` to `end` over `over` batches.
    """

    def __init__(self, model: nnx.Module, start: float, end: float, over: int):
        self.model: Any = model
        self.start, self.end, self.over = start, end, over
        self.seen = Buffer(jnp.zeros((), jnp.int32))

    def __call__(
        self,
        src: Int[Array, "b s"],
        tgt: Int[Array, "b t"],
        lengths: Int[Array, " b"],
        uniform: Float[Array, "b t"],
    ) -> tuple[Float[Array, "b t v"], Float[Array, ""]]:
        part = jnp.minimum(self.seen[...].astype(uniform.dtype) / self.over, 1.0)
        ratio = self.start + (self.end - self.start) * part
        self.seen[...] = self.seen[...] + 1
        return self.model(src, tgt, lengths, uniform < ratio), ratio


def make(start: float = 1.0, end: float = 0.25, over: int = 400) -> Task:
    """Cross-entropy of `label` (B, T), scored by the share of sequences without a wrong character.

    A coin decides for each character whether the decoder reads the true one before it or its own prediction; the
    ratio of true ones falls linearly from `start` to `end` over the first `over` batches and is logged.
    Evaluation is free-running: it reads predictions alone.

    Raises:
        UsageError: a ratio outside [0, 1], or `over` below 1.
    """
    if not (0 <= start <= 1 and 0 <= end <= 1 and over >= 1):
        raise UsageError(
            f"teacher forcing from {start} to {end} over {over} batches: ratios must be in [0, 1]"
        )

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return ScheduledSampling(model, start, end, over)

    def draw(key: jax.Array, batch: Batch) -> Batch:
        dtype = jnp.result_type(float)
        return {**batch, "uniform": jax.random.uniform(key, batch["tgt"].shape, dtype)}

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        logits, ratio = model(batch["src"], batch["tgt"], batch["lengths"], batch["uniform"])
        return cross_entropy(logits, batch["label"]), {"ratio": ratio}

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        tgt = batch["tgt"]
        logits = model.model(batch["src"], tgt, batch["lengths"], jnp.zeros(tgt.shape, bool))
        weight = valid_weights(batch, logits.dtype)
        return {**character_sums(logits.argmax(-1), batch["label"], weight), "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("exact", "characters")}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("exact", higher_is_better=True),
        wrap=wrap,
        draw=draw,
    )


def character_sums(
    predicted: Int[Array, "b t"], label: Int[Array, "b t"], weight: Float[Array, " b"]
) -> dict[str, Float[Array, ""]]:
    """Weighted sums over rows: whether every character is correct, and the share of correct ones."""
    correct = (predicted == label).astype(weight.dtype)
    return {"exact": (correct.min(1) * weight).sum(), "characters": (correct.mean(1) * weight).sum()}
