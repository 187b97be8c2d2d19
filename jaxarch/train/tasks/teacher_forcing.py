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
from jaxarch.train.tasks import Batch, Task, Update


class Pupil(nn.Module):
    """A model (src, tgt, lengths, coins) -> logits that counts its training batches.

    -> logits and the ratio of teacher forcing that the count stands for: `start` to `end` over `over` batches.
    """

    def __init__(self, model: nnx.Module, start: float, end: float, over: int):
        self.model = model
        self.start, self.end, self.over = start, end, over
        self.seen = Buffer(jnp.zeros((), jnp.int32))

    def __call__(
        self,
        src: Int[Array, "b s"],
        tgt: Int[Array, "b t"],
        lengths: Int[Array, " b"],
        chances: Float[Array, "b t"],
    ) -> tuple[Float[Array, "b t v"], Float[Array, ""]]:
        part = jnp.minimum(self.seen[...].astype(chances.dtype) / self.over, 1.0)
        ratio = self.start + (self.end - self.start) * part
        self.seen[...] = self.seen[...] + 1
        return self.model(src, tgt, lengths, chances < ratio), ratio


def make(start: float = 1.0, end: float = 0.25, over: int = 400) -> Task:
    """Cross-entropy of `label` (B, T), scored by the share of sequences that are right in every sign.

    A coin says for each sign whether the decoder reads the true one before it or its own guess; the ratio
    of true ones falls linearly from `start` to `end` over the first `over` batches and is logged. Evaluation
    reads guesses alone. -100 in the label's first place takes a row out.

    Raises:
        UsageError: a ratio outside [0, 1], or `over` below 1.
    """
    if not (0 <= start <= 1 and 0 <= end <= 1 and over >= 1):
        raise UsageError(
            f"teacher forcing from {start} to {end} over {over} batches: ratios must be in [0, 1]"
        )

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return Pupil(model, start, end, over)

    def draw(key: jax.Array, batch: Batch) -> Batch:
        dtype = jnp.result_type(float)
        return {**batch, "chances": jax.random.uniform(key, batch["tgt"].shape, dtype)}

    def loss(model: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        logits, ratio = model(batch["src"], batch["tgt"], batch["lengths"], batch["chances"])
        return cross_entropy(logits, batch["label"]), {"ratio": ratio}

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        tgt, label = batch["tgt"], batch["label"]
        logits = model.model(batch["src"], tgt, batch["lengths"], jnp.zeros(tgt.shape, bool))
        right = (logits.argmax(-1) == label).astype(logits.dtype)  # never in rows of -100
        counts = (label[:, 0] != -100).astype(logits.dtype)
        return {"exact": right.min(1).sum(), "signs": right.mean(1).sum(), "count": counts.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("exact", "signs")}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=("exact", True),
        wrap=wrap,
        draw=draw,
    )
