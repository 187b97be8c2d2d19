"""Attention over words, then over sentences: Yang et al. 2016, doi:10.18653/v1/N16-1174."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch import nn
from jaxarch.errors import DataError

Weights = tuple[Float[Array, "b s w"], Float[Array, "b s"]]


class ContextAttention(nn.Module):
    """hidden (B, T, dim), mask (B, T) True where valid -> weighted sum (B, dim), weights (B, T).

    The score of a step is its match with a learned context vector. Without any valid step both are zero.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.linear = nn.Linear(dim, dim, rngs=rngs)
        self.context = nn.Linear(dim, 1, bias=False, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "b t d"], mask: Bool[Array, "b t"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b t"]]:
        scores = self.context(jnp.tanh(self.linear(hidden)))[..., 0]
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, -1), 0)
        return jnp.einsum("bt,btd->bd", weights, hidden), weights


class HierarchicalAttentionNetwork(nn.Module):
    """ids (B, S, W), S at most num_sentences -> logits (B, num_classes).

    Words equal to pad_token_id, and sentences of nothing else, are left out wherever they occur, as if the
    text were without them. A document of padding alone gives the classifier's bias. With `return_attention`
    also the weights of words (B, S, W) and of sentences (B, S), zero on padding.

    Raises:
        DataError: more sentences than num_sentences; outside jit, an id out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        num_classes: int,
        num_sentences: int,
        dropout: float = 0.1,
        pad_token_id: int = 0,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_sentences, self.pad_token_id = num_sentences, pad_token_id
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_token_id, rngs=rngs)
        self.word_gru = nn.GRU(embed_dim, hidden_size, batch_first=True, bidirectional=True, rngs=rngs)
        self.word_attention = ContextAttention(2 * hidden_size, rngs=rngs)
        self.sentence_gru = nn.GRU(
            2 * hidden_size, hidden_size, batch_first=True, bidirectional=True, rngs=rngs
        )
        self.sentence_attention = ContextAttention(2 * hidden_size, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.fc = nn.Linear(2 * hidden_size, num_classes, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b s w"], return_attention: bool = False
    ) -> Float[Array, "b o"] | tuple[Float[Array, "b o"], Weights]:
        batch, sentences, words = ids.shape
        if sentences > self.num_sentences:
            raise DataError(f"{sentences} sentences are more than num_sentences {self.num_sentences}")
        empty = (ids == self.pad_token_id).all(-1)
        # Padding moves to the end of each document and sentence, so that lengths describe it.
        sentence_order = jnp.argsort(empty, -1, stable=True)
        ids = jnp.take_along_axis(ids, sentence_order[..., None], 1)
        word_order = jnp.argsort(ids == self.pad_token_id, -1, stable=True)
        valid = jnp.take_along_axis(ids, word_order, -1).reshape(-1, words)
        x, word_weights = self._read(
            self.word_gru,
            self.word_attention,
            self.dropout(self.embedding(valid)),
            valid != self.pad_token_id,
        )
        filled = (ids != self.pad_token_id).any(-1)
        x, sentence_weights = self._read(
            self.sentence_gru, self.sentence_attention, x.reshape(batch, sentences, -1), filled
        )
        logits = self.fc(self.dropout(x))
        if not return_attention:
            return logits
        word_weights = jnp.take_along_axis(word_weights.reshape(ids.shape), jnp.argsort(word_order, -1), -1)
        back = jnp.argsort(sentence_order, -1)
        word_weights = jnp.take_along_axis(word_weights, back[..., None], 1)
        return logits, (word_weights, jnp.take_along_axis(sentence_weights, back, 1))

    def _read(
        self, gru: nn.GRU, attention: ContextAttention, x: Float[Array, "n t d"], mask: Bool[Array, "n t"]
    ) -> tuple[Float[Array, "n h"], Float[Array, "n t"]]:
        # The recurrent layers refuse a length of zero; the attention leaves out the one step read instead.
        hidden, _ = gru(x, lengths=jnp.maximum(mask.sum(-1), 1))
        return attention(hidden, mask)
