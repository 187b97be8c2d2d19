"""Recovering masked tokens from both sides. Devlin et al. 2018, arXiv:1810.04805, for recurrent nets.

A net that reads in both directions has seen every next token: it is asked for the ones hidden from it.
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
from jaxarch.train.tasks import Batch, Task, Update


class Carried(nn.Module):
    """A net (ids, (h, c)) -> logits, (h, c) whose forward state goes on from one training batch to the next.

    Gradients stop there: truncated backpropagation through time. The reverse direction begins with zeros,
    as its past is the text to come; so does everything in a row marked `fresh`, and in eval mode.
    """

    def __init__(self, model: nnx.Module, h: Float[Array, "2 b h"], c: Float[Array, "2 b h"]):
        self.model = model
        self.h, self.c = Buffer(h), Buffer(c)
        self.deterministic = False  # what train() and eval() set

    def __call__(self, ids: Int[Array, "b t"], fresh: Bool[Array, " b"]) -> Float[Array, "b t v"]:
        if self.deterministic:
            return self.model(ids)[0]
        keep = jnp.stack([~fresh, jnp.zeros_like(fresh)])[..., None]
        begin = tuple(jnp.where(keep, s[...], 0).astype(s[...].dtype) for s in (self.h, self.c))
        logits, end = self.model(ids, begin)
        for state, value in zip((self.h, self.c), end, strict=True):
            state[...] = jax.lax.stop_gradient(value).astype(state[...].dtype)
        return logits


def make(rate: float = 0.15, carry: bool = False) -> Task:
    """Cross-entropy of the tokens under masks, drawn anew in each step with probability `rate` a token.

    A masked token is read as the model's last id; scored by the perplexity of the masked tokens. With
    `carry` the rows of a batch must continue those of the batch before, as in the data pydoc_streams: the
    net then starts a batch from the state in which it left the one before (truncated backpropagation).
    """

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        if not carry:
            return model
        _, (h, c) = nnx.eval_shape(lambda m: m(jnp.asarray(sample["ids"])), model)
        return Carried(model, jnp.zeros(h.shape, h.dtype), jnp.zeros(c.shape, c.dtype))

    def draw(key: jax.Array, batch: Batch) -> Batch:
        return {**batch, "masked": jax.random.bernoulli(key, rate, batch["ids"].shape)}

    def logits_of(model: Any, batch: Batch) -> tuple[Array, Array]:
        ids, masked = batch["ids"], batch["masked"]
        vocab = (model.model if carry else model).embed.num_embeddings
        seen = jnp.where(masked, vocab - 1, ids)
        logits = model(seen, batch["fresh"]) if carry else model(seen)[0]
        return logits, jnp.where(masked & (batch["label"] != -100)[:, None], ids, -100)

    def loss(model: nnx.Module, batch: Batch) -> Array:
        return cross_entropy(*logits_of(model, batch))

    def tally(model: nnx.Module, batch: Batch) -> dict[str, Array]:
        logits, labels = logits_of(model, batch)
        total = (labels != -100).sum().astype(logits.dtype)
        return {"loss": cross_entropy(logits, labels) * total, "count": total}

    def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
        loss = sums["loss"] / sums["count"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=("perplexity", False),
        wrap=wrap,
        draw=draw,
    )
