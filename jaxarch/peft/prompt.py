"""P-tuning: trained vectors before a sequence. Liu et al. 2021, arXiv:2103.10385."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import unknown
from jaxarch.nn import LSTM, Activation, Dropout, Linear, Module, Sequential, normal_parameter

ENCODERS = ("embedding", "mlp", "lstm")


class PTuningLayer(Module):
    """(B, T, D) -> (B, prompt_length + T, D): the prompt, encoded, then the sequence.

    `encoder` is how the prompt is made from its vectors: "embedding" takes them as they are, "mlp" passes
    them through two layers, "lstm" through a bidirectional LSTM and two layers, as in the paper.

    Raises:
        UsageError: an unknown encoder.
    """

    def __init__(
        self,
        d_model: int,
        prompt_length: int = 10,
        dropout: float = 0.1,
        encoder: str = "embedding",
        *,
        rngs: nnx.Rngs,
    ):
        if encoder not in ENCODERS:
            raise unknown("prompt encoder", encoder, ENCODERS)
        self.prompt_length = prompt_length
        self.prompt_embeddings = normal_parameter((prompt_length, d_model), 0.02, rngs=rngs)
        self.lstm: Any = nnx.data(None)
        self.mlp: Any = nnx.data(None)
        if encoder == "lstm":
            self.lstm = LSTM(d_model, d_model, bidirectional=True, batch_first=True, rngs=rngs)
        if encoder != "embedding":
            width = 2 * d_model if encoder == "lstm" else d_model
            self.mlp = Sequential(
                Linear(width, d_model, rngs=rngs), Activation("relu"), Linear(d_model, d_model, rngs=rngs)
            )
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b u d"]:
        prompt = self.prompt_embeddings[...][None]
        prompt = prompt if self.lstm is None else self.lstm(prompt)[0]
        prompt = prompt if self.mlp is None else self.mlp(prompt)
        prompt = self.dropout(jnp.broadcast_to(prompt.astype(x.dtype), (x.shape[0], *prompt.shape[1:])))
        return jnp.concatenate((prompt, x), 1)

    def extend_mask(self, mask: Array) -> Array:
        """A mask (B, T) with the prompt, which is always attended to, before it."""
        return jnp.concatenate((jnp.ones((mask.shape[0], self.prompt_length), mask.dtype), mask), 1)

    def extend_labels(self, labels: Int[Array, "b t"]) -> Int[Array, "b u"]:
        """Labels (B, T) with -100, which does not count, for the prompt before them."""
        return jnp.concatenate(
            (jnp.full((labels.shape[0], self.prompt_length), -100, labels.dtype), labels), 1
        )


P_TuningLayer = PTuningLayer
