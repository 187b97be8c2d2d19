"""BERT's encoder under Hugging Face's names, shared by every architecture of the family.

Devlin et al. 2018, arXiv:1810.04805. A row whose keys are all masked is the mean of all values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.containers import ModuleList
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.embedding import Embedding
from jaxarch.nn.hub import PROBLEM_TYPES, attend, check_same_shape, draw_normal, hub_activation
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.norm import LayerNorm
from jaxarch.nn.position import check_length


@dataclass(frozen=True)
class BertConfig:
    """The settings of Hugging Face's BertConfig that decide what is computed.

    `classifier_dropout`, `num_labels` and `problem_type` are read by the classifier alone: the dropout None
    is `hidden_dropout_prob`, the type None "regression" for one label and otherwise inferred from the labels.
    `output_hidden_states` and `output_attentions` are what a call returns unless it says otherwise.
    """

    model_type: ClassVar[str] = "bert"
    # Settings of which one value is implemented.
    only: ClassVar[Mapping[str, object]] = {
        "add_cross_attention": False,
        "is_decoder": False,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    num_labels: int = 2
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise UsageError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UsageError(f"unknown problem_type {self.problem_type!r}: known: {', '.join(PROBLEM_TYPES)}")


class BertEmbeddings(Module):
    """Words, positions and token types, summed, then a norm and dropout. The padding word gets no gradient."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.max_len = config.max_position_embeddings
        self.word_embeddings = Embedding(config.vocab_size, width, config.pad_token_id, rngs=rngs)
        self.position_embeddings = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.token_type_embeddings = Embedding(config.type_vocab_size, width, rngs=rngs)
        self.LayerNorm = LayerNorm(width, config.layer_norm_eps, rngs=rngs)
        self.dropout = Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None,
        token_type_ids: Int[Array, "b t"] | None = None,
        position_ids: Int[Array, "_ t"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
    ) -> Float[Array, "b t d"]:
        if (input_ids is None) == (inputs_embeds is None):
            raise DataError("give either input_ids or inputs_embeds")
        x: Any = self.word_embeddings(input_ids) if input_ids is not None else inputs_embeds
        if position_ids is None:
            check_length(x.shape[1], self.max_len)
            position_ids = jnp.arange(x.shape[1])[None]
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(position_ids)
        x = x + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(Module):
    """Multi-head attention of a sequence to itself; also the weights after dropout."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.dropout = Dropout(config.attention_probs_dropout_prob, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        y, weights, _ = attend(q, k, v, self.heads, mask, self.dropout)
        return y, weights


class BertOutput(Module):
    """A projection, dropout, and the norm of the sum with the residual."""

    def __init__(self, in_features: int, config: BertConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(in_features, config.hidden_size, rngs=rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.dropout = Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: Float[Array, "b t i"], residual: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertAttention(Module):
    """Attention with its output projection; also the weights."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.self = BertSelfAttention(config, rngs=rngs)
        self.output = BertOutput(config.hidden_size, config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        y, weights = self.self(x, mask)
        return self.output(y, x), weights


class BertIntermediate(Module):
    """The feed-forward network's first layer and its activation."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.intermediate_act_fn = hub_activation(config.hidden_act)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t i"]:
        return self.intermediate_act_fn(self.dense(x))


class BertLayer(Module):
    """Attention and two layers, post-norm; also the weights."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.attention = BertAttention(config, rngs=rngs)
        self.intermediate = BertIntermediate(config, rngs=rngs)
        self.output = BertOutput(config.intermediate_size, config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        x, weights = self.attention(x, mask)
        return self.output(self.intermediate(x), x), weights


class BertEncoder(Module):
    """The layers one after another: every hidden state, the input's first, and every layer's weights."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.layer: Any = ModuleList([BertLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> tuple[list[Array], list[Array]]:
        states, attentions = [x], []
        for layer in self.layer:
            x, weights = layer(x, mask)
            states.append(x)
            attentions.append(weights)
        return states, attentions


class BertPooler(Module):
    """The first token's state through a layer and tanh."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        return jnp.tanh(self.dense(x[:, 0]))


class BertModel(Module):
    """ids (B, T) -> {"last_hidden_state" (B, T, D), "pooler_output" (B, D)}, and the requested extras.

    `attention_mask` (B, T) is 1 or True where a token is real. `token_type_ids` (B, T) are 0 and
    `position_ids` (B, T) or (1, T) count from 0 if not given. `inputs_embeds` (B, T, D) stand for the
    embeddings of tokens. "hidden_states" are the embeddings and every layer's output, "attentions" every
    layer's weights (B, H, T, T).

    Raises:
        UsageError: heads that do not divide the width; an unknown activation.
        DataError: in the call, T beyond `max_position_embeddings`, ids out of range, a mask of another shape.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = BertEmbeddings(config, rngs=rngs)
        self.encoder = BertEncoder(config, rngs=rngs)
        self.pooler = BertPooler(config, rngs=rngs) if add_pooling_layer else nnx.data(None)
        draw_normal(self, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Shaped[Array, "..."] | None = None,
        token_type_ids: Int[Array, "_ _"] | None = None,
        position_ids: Int[Array, "_ _"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is not None:
            check_same_shape(inputs.shape[:2], attention_mask=attention_mask, token_type_ids=token_type_ids)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        states, attentions = self.encoder(x, attention_mask)
        outputs: dict[str, Any] = {"last_hidden_state": states[-1]}
        if self.pooler is not None:
            outputs["pooler_output"] = self.pooler(states[-1])
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            outputs["hidden_states"] = tuple(states)
        if self.config.output_attentions if output_attentions is None else output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs
