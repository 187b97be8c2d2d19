"""BERT that marks the answer in a text, with Hugging Face's names (`BertForQuestionAnswering`).

Devlin et al. 2018, arXiv:1810.04805.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class BertForQuestionAnswering(nn.Module):
    """BertModel's inputs -> {"start_logits" (B, T), "end_logits" (B, T)}: scores of where the answer begins and ends;
    with both positions (B,) also "loss"; states and weights on request.

    As in `transformers`, a position beyond the text does not count, and one below 0 is 0.

    Raises:
        UsageError, DataError: as `BertModel`.
    """

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bert = nn.BertModel(config, add_pooling_layer=False, rngs=rngs)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels, rngs=rngs)
        nn.draw_normal(self.qa_outputs, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Int[Array, "_ _"] | None = None,
        position_ids: Int[Array, "_ _"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        start_positions: Int[Array, "b"] | None = None,
        end_positions: Int[Array, "b"] | None = None,
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
        logits = self.qa_outputs(outputs.pop("last_hidden_state"))
        start, end = logits[..., 0], logits[..., 1]
        outputs = {"start_logits": start, "end_logits": end, **outputs}
        if start_positions is None or end_positions is None:
            return outputs
        return {"loss": (self._loss(start, start_positions) + self._loss(end, end_positions)) / 2, **outputs}

    def _loss(self, logits: Float[Array, "b t"], positions: Int[Array, "b"]) -> Float[Array, ""]:
        positions = jnp.maximum(positions, 0)
        return nn.token_loss(logits, jnp.where(positions < logits.shape[1], positions, -100))
