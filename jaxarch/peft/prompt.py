"""P-tuning: trainable vectors before a sequence. Liu et al. 2021, arXiv:2103.10385."""

import fnmatch
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import UsageError, unknown
from jaxarch.nn import LSTM, Activation, Dropout, Embedding, Linear, Module, Sequential, normal_parameter
from jaxarch.nn.embedding import check_ids
from jaxarch.peft.lora import adapted, freeze, put, thaw
from jaxarch.state import join

ENCODERS = ("embedding", "mlp", "lstm")


class PTuningLayer(Module):
    """(B, T, D) -> (B, prompt_length + T, D): the encoded prompt, then the sequence.

    `encoder` computes the prompt from its vectors: "embedding" is the identity, "mlp" two layers, "lstm" a
    bidirectional LSTM and two layers, as in the paper.

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
        prompt = self.encoded().astype(x.dtype)
        prompt = self.dropout(jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape)))
        return jnp.concatenate((prompt, x), 1)

    def encoded(self) -> Float[Array, "p d"]:
        """The vectors of the prompt."""
        prompt = self.prompt_embeddings[...][None]
        prompt = prompt if self.lstm is None else self.lstm(prompt)[0]
        return (prompt if self.mlp is None else self.mlp(prompt))[0]

    def extend_mask(self, mask: Array) -> Array:
        """A mask (B, T) with the prompt, which is always attended to, before it."""
        return jnp.concatenate((jnp.ones((mask.shape[0], self.prompt_length), mask.dtype), mask), 1)

    def extend_labels(self, labels: Int[Array, "b t"]) -> Int[Array, "b u"]:
        """Labels (B, T) with -100, which does not count, for the prompt before them."""
        return jnp.concatenate(
            (jnp.full((labels.shape[0], self.prompt_length), -100, labels.dtype), labels), 1
        )


P_TuningLayer = PTuningLayer


class PromptEmbedding(Module):
    """An Embedding of V tokens, extended by a prompt of tokens V to V + prompt_length - 1.

    ids (...,) in [0, V + prompt_length) -> (..., D). The prompt's vectors are those of a PTuningLayer, and
    dropout is applied to them once per call. `weight` is the table of the V tokens, for heads that are tied
    to it.
    """

    def __init__(
        self,
        embedding: Embedding,
        prompt_length: int = 10,
        dropout: float = 0.1,
        encoder: str = "embedding",
        *,
        rngs: nnx.Rngs,
    ):
        self.base_layer = embedding
        self.prompt = PTuningLayer(embedding.embedding_dim, prompt_length, dropout, encoder, rngs=rngs)

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        size = self.base_layer.num_embeddings
        check_ids(ids, size + self.prompt.prompt_length)
        is_token = ids < size
        x = self.base_layer(jnp.where(is_token, ids, 0))
        prompt = self.prompt.dropout(self.prompt.encoded().astype(x.dtype))
        index = jnp.where(is_token, 0, ids - size)
        return jnp.where(is_token[..., None], x, prompt.at[index].get(mode="fill", fill_value=jnp.nan))

    @property
    def weight(self) -> nnx.Variable:
        """The table of the tokens, without the prompt."""
        return self.base_layer.weight

    def extend_ids(self, ids: Int[Array, "b t"]) -> Int[Array, "b u"]:
        """Ids (B, T) with the prompt before them."""
        first, count = self.base_layer.num_embeddings, self.prompt.prompt_length
        prompt = jnp.broadcast_to(jnp.arange(first, first + count, dtype=ids.dtype), (ids.shape[0], count))
        return jnp.concatenate((prompt, ids), 1)

    def extend_mask(self, mask: Array) -> Array:
        """As PTuningLayer's."""
        return self.prompt.extend_mask(mask)

    def extend_labels(self, labels: Int[Array, "b t"]) -> Int[Array, "b u"]:
        """As PTuningLayer's."""
        return self.prompt.extend_labels(labels)


def apply_prompt(
    model: nnx.Module,
    match: str,
    prompt_length: int = 10,
    dropout: float = 0.1,
    encoder: str = "embedding",
    *,
    rngs: nnx.Rngs,
) -> PromptEmbedding:
    """Give the embedding whose path matches a prompt, and freeze everything else, in place.

    The model is then called with ids, masks and labels that the returned layer has extended.

    Raises:
        UsageError: the pattern matches no embedding, or several; the model has adapters; an unknown encoder.
    """
    if adapted(model):
        raise UsageError("the model has adapters: merge and remove them, or create a new model")
    tables = {join(p): m for p, m in nnx.iter_modules(model) if isinstance(m, Embedding)}
    hits = fnmatch.filter(tables, match)
    if not hits:
        raise unknown("embedding", match, tables)
    if len(hits) > 1:
        raise UsageError(f"{match!r} matches several embeddings: {', '.join(hits)}; a prompt needs one")
    layer = PromptEmbedding(tables[hits[0]], prompt_length, dropout, encoder, rngs=rngs)
    freeze(model)
    put(model, hits[0], layer)
    return layer


def remove_prompt(model: nnx.Module) -> None:
    """Restore the plain embedding; all weights are trainable."""
    for path, layer in [(join(p), m) for p, m in nnx.iter_modules(model) if isinstance(m, PromptEmbedding)]:
        put(model, path, layer.base_layer)
    thaw(model)
