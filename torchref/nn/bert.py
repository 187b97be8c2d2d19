"""BERT's encoder under Hugging Face's names, shared by every architecture of the family.

Devlin et al. 2018, arXiv:1810.04805. A row whose keys are all masked is the mean of all values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList

from torchref.nn.hub import PROBLEM_TYPES, attend, check_same_shape, draw_normal, hub_activation
from torchref.nn.position import check_length


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
            raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"unknown problem_type {self.problem_type!r}: known: {', '.join(PROBLEM_TYPES)}")


class BertEmbeddings(Module):
    """Words, positions and token types, summed, then a norm and dropout. The padding word gets no gradient."""

    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.max_len = config.max_position_embeddings
        self.word_embeddings = Embedding(config.vocab_size, width, config.pad_token_id)
        self.position_embeddings = Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = Embedding(config.type_vocab_size, width)
        self.LayerNorm = LayerNorm(width, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x: Any = self.word_embeddings(input_ids) if input_ids is not None else inputs_embeds
        if position_ids is None:
            check_length(x.shape[1], self.max_len)
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        x = x + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))


class BertSelfAttention(Module):
    """Multi-head attention of a sequence to itself; also the weights after dropout."""

    def __init__(self, config: BertConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        y, weights, _ = attend(q, k, v, self.heads, mask, self.dropout)
        return y, weights


class BertOutput(Module):
    """A projection, dropout, and the norm of the sum with the residual."""

    def __init__(self, in_features: int, config: BertConfig):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertAttention(Module):
    """Attention with its output projection; also the weights."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, weights = self.self(x, mask)
        return self.output(y, x), weights


class BertIntermediate(Module):
    """The feed-forward network's first layer and its activation."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = hub_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(x))


class BertLayer(Module):
    """Attention and two layers, post-norm; also the weights."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, weights = self.attention(x, mask)
        return self.output(self.intermediate(x), x), weights


class BertEncoder(Module):
    """The layers one after another: every hidden state, the input's first, and every layer's weights."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.layer: Any = ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        states, attentions = [x], []
        for layer in self.layer:
            x, weights = layer(x, mask)
            states.append(x)
            attentions.append(weights)
        return states, attentions


class BertPooler(Module):
    """The first token's state through a layer and tanh."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))


class BertModel(Module):
    """ids (B, T) -> {"last_hidden_state" (B, T, D), "pooler_output" (B, D)}, and the requested extras.

    `attention_mask` (B, T) is 1 or True where a token is real. `token_type_ids` (B, T) are 0 and
    `position_ids` (B, T) or (1, T) count from 0 if not given. `inputs_embeds` (B, T, D) stand for the
    embeddings of tokens. "hidden_states" are the embeddings and every layer's output, "attentions" every
    layer's weights (B, H, T, T).

    Heads that do not divide the width and unknown activations are ValueErrors, and in the call T beyond
    `max_position_embeddings` and a mask of another shape; ids out of range are an IndexError.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        draw_normal(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
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
