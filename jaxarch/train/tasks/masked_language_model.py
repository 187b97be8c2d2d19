"""Predicting masked tokens from both sides. Devlin et al. 2018, arXiv:1810.04805, for recurrent models.

A bidirectional model has read every next token, so it is asked for tokens that are masked in its input.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch import nn
from jaxarch.losses import cross_entropy
from jaxarch.nn.module import Buffer
from jaxarch.train.tasks import IGNORE_INDEX, Batch, Score, Task, Update, valid_rows


class Stateful(nn.Module):
    """A model (ids, (h, c)) -> logits, (h, c) whose forward state goes on from one training batch to the next.

    Gradients stop there: truncated backpropagation through time. The reverse direction begins with zeros,
    as its past is the text to come; so does everything in a row marked `fresh`, and in eval mode.
    """

    def __init__(self, model: nnx.Module, h: Float[Array, "2 b h"], c: Float[Array, "2 b h"]):
        self.model: Any = model
        self.h, self.c = Buffer(h), Buffer(c)
        self.deterministic = False  # what train() and eval() set

    def __call__(self, ids: Int[Array, "b t"], fresh: Bool[Array, " b"]) -> Float[Array, "b t v"]:
        if self.deterministic:
            return self.model(ids)[0]
        keep = jnp.stack([~fresh, jnp.zeros_like(fresh)])[..., None]
        start = tuple(jnp.where(keep, s[...], 0).astype(s[...].dtype) for s in (self.h, self.c))
        logits, end = self.model(ids, start)
        for state, value in zip((self.h, self.c), end, strict=True):
            state[...] = jax.lax.stop_gradient(value).astype(state[...].dtype)
        return logits


def make(rate: float = 0.15, carry: bool = False) -> Task:
    """Cross-entropy of the masked tokens, drawn anew in each step with probability `rate` a token.

    A masked token is read as the model's last id; scored by the perplexity of the masked tokens. With
    `carry` the rows of a batch must continue those of the batch before, as in the data pydoc_streams: the
    model then starts a batch from the state in which it left the one before (truncated backpropagation).
    """

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if not carry:
            return model
        _, (h, c) = nnx.eval_shape(lambda m: m(jnp.asarray(sample["ids"])), model)
        return Stateful(model, jnp.zeros(h.shape, h.dtype), jnp.zeros(c.shape, c.dtype))

    def draw(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "masked": jax.random.bernoulli(key, rate, batch["ids"].shape)}

    def logits_and_labels(model: Any, batch: Batch) -> tuple[Float[Array, "b t v"], Int[Array, "b t"]]:
        ids, masked = batch["ids"], batch["masked"]
        vocab = (model.model if carry else model).embed.num_embeddings
        inputs = jnp.where(masked, vocab - 1, ids)
        logits = model(inputs, batch["fresh"]) if carry else model(inputs)[0]
        return logits, jnp.where(masked, ids, IGNORE_INDEX)

    def loss(model: Any, batch: Batch) -> Array:
        return cross_entropy(*logits_and_labels(model, batch))

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        logits, labels = logits_and_labels(model, batch)
        labels = jnp.where(valid_rows(batch)[:, None], labels, IGNORE_INDEX)
        total = (labels != IGNORE_INDEX).sum().astype(logits.dtype)
        return {"loss": cross_entropy(logits, labels) * total, "count": total}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=perplexity,
        score=Score("perplexity", higher_is_better=False),
        wrap=wrap,
        draw=draw,
    )


def perplexity(sums: Mapping[str, Any]) -> dict[str, Any]:
    """Mean loss of a masked token and its exponential."""
    loss = sums["loss"] / sums["count"]
    return {"loss": loss, "perplexity": math.exp(min(loss, 700))}
