"""BERT that predicts masked words, with Hugging Face's names (`BertForMaskedLM`).

Devlin et al. 2018, arXiv:1810.04805. The output projection is tied to the word embeddings.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class BertPredictionHeadTransform(nn.Module):
    """A layer, its activation and a norm."""

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, rngs=rngs)
        self.transform_act_fn = nn.hub_activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return self.LayerNorm(self.transform_act_fn(self.dense(x)))


class BertLMPredictionHead(nn.Module):
    """Scores of every word: the embedding table is an argument, the bias a parameter."""

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.transform = BertPredictionHeadTransform(config, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros_like(rngs.params.uniform((config.vocab_size,))))

    def __call__(self, x: Float[Array, "b t d"], table: Float[Array, "v d"]) -> Float[Array, "b t v"]:
        return self.transform(x) @ table.T + self.bias[...]


class BertOnlyMLMHead(nn.Module):
    """The head, under Hugging Face's name for it."""

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.predictions = BertLMPredictionHead(config, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], table: Float[Array, "v d"]) -> Float[Array, "b t v"]:
        return self.predictions(x, table)


class BertForMaskedLM(nn.Module):
    """BertModel's inputs -> {"logits" (B, T, V)}; with labels (B, T) also "loss"; states and weights on request.

    Labels of -100, that is every word that was not masked, do not count; if none counts the loss is 0.

    Raises:
        UsageError, DataError: as `BertModel`, and for labels of another shape than the ids.
    """

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bert = nn.BertModel(config, add_pooling_layer=False, rngs=rngs)
        self.cls = BertOnlyMLMHead(config, rngs=rngs)
        nn.draw_normal(self.cls, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Int[Array, "_ _"] | None = None,
        position_ids: Int[Array, "_ _"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        labels: Int[Array, "_ _"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states,
            output_attentions,
        )
        x = outputs.pop("last_hidden_state")
        nn.check_same_shape(x.shape[:2], labels=labels)
        outputs = {"logits": self.cls(x, self.bert.embeddings.word_embeddings.weight[...]), **outputs}
        return outputs if labels is None else {"loss": nn.token_loss(outputs["logits"], labels), **outputs}
