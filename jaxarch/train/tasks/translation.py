"""An encoder-decoder (src, tgt) -> logits, taught with the true target, tested on what it writes itself."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array

from jaxarch.generate import translate
from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import Batch, Task, Update


def make(label_smoothing: float = 0.0, bos: int = 1, eos: int = 2) -> Task:
    """Cross-entropy of `label` (B, T), the sign after each of `tgt`, scored by greedy decoding.

    "exact" is the share of sequences that are right in every sign, "signs" that of the signs. `bos` begins
    a target, `eos` ends it. -100 in the label's first place takes a row out.
    """

    def loss(model: Any, batch: Batch) -> Array:
        logits = model(batch["src"], batch["tgt"])
        return cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)

    def tally(model: nnx.Module, batch: Batch) -> dict[str, Array]:
        logits, label = model(batch["src"], batch["tgt"]), batch["label"]  # type: ignore[operator]
        written = translate(model, batch["src"], label.shape[1], bos_token_id=bos, eos_token_id=eos)
        right = (written == label).astype(logits.dtype)  # never in rows of -100
        count = (label[:, 0] != -100).astype(logits.dtype).sum()
        total = cross_entropy(logits, label) * count
        return {"exact": right.min(1).sum(), "signs": right.mean(1).sum(), "loss": total, "count": count}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("exact", "signs", "loss")}

    return Task(updates={"model": Update(loss=loss)}, tally=tally, summary=summary, score=("exact", True))
