"""BERT that classifies each token, with Hugging Face's names (`BertForTokenClassification`).

Devlin et al. 2018, arXiv:1810.04805.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class BertForTokenClassification(nn.Module):
    """BertModel's inputs -> {"logits" (B, T, num_labels)}; with labels (B, T) also "loss", where -100 does not count;
    states and weights on request.

    Raises:
        UsageError, DataError: as `BertModel`.
    """

    def __init__(self, config: nn.BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bert = nn.BertModel(config, add_pooling_layer=False, rngs=rngs)
        drop = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if drop is None else drop, rngs=rngs)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels, rngs=rngs)
        nn.draw_normal(self.classifier, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"] | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Int[Array, "_ _"] | None = None,
        position_ids: Int[Array, "_ _"] | None = None,
        inputs_embeds: Float[Array, "b t d"] | None = None,
        labels: Int[Array, "b t"] | None = None,
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
        outputs = {"logits": self.classifier(self.dropout(outputs.pop("last_hidden_state"))), **outputs}
        return outputs if labels is None else {"loss": nn.token_loss(outputs["logits"], labels), **outputs}
