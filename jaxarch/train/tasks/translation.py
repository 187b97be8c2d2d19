"""An encoder-decoder (src, tgt) -> logits, trained by teacher forcing and tested by greedy decoding."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

from jaxarch.generate import translate
from jaxarch.losses import cross_entropy
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_labels, valid_weights
from jaxarch.train.tasks.teacher_forcing import character_sums


def make(label_smoothing: float = 0.0, bos: int = 1, eos: int = 2) -> Task:
    """Cross-entropy of `label` (B, T), the character after each of `tgt`, scored by greedy decoding.

    "exact" is the share of sequences without a wrong character, "characters" that of correct characters. `bos`
    begins a target, `eos` ends it.
    """

    def loss(model: Any, batch: Batch) -> Array:
        logits = model(batch["src"], batch["tgt"])
        return cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        logits, label = model(batch["src"], batch["tgt"]), batch["label"]
        decoded = translate(model, batch["src"], label.shape[1], bos_token_id=bos, eos_token_id=eos)
        weight = valid_weights(batch, logits.dtype)
        total = cross_entropy(logits, valid_labels(batch)) * weight.sum()
        return {**character_sums(decoded, label, weight), "loss": total, "count": weight.sum()}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        return {k: sums[k] / sums["count"] for k in ("exact", "characters", "loss")}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("exact", higher_is_better=True),
    )
