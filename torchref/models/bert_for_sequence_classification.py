"""BERT that classifies or scores a text, with Hugging Face's names (`BertForSequenceClassification`).

Devlin et al. 2018, arXiv:1810.04805.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from torchref import nn


class BertForSequenceClassification(nn.Module):
    """BertModel's inputs -> {"logits" (B, num_labels)}; with labels also "loss"; states and weights on request.

    The problem is the config's or, as in Hugging Face's model, inferred from the labels: one label is a
    regression (floats (B,) or (B, 1), squared error), integers (B,) are classes (cross-entropy, -100 does not
    count), floats (B, num_labels) are labels that may hold together (binary cross-entropy).

    Errors are those of `BertModel`; labels that do not fit the problem are a ValueError.
    """

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.config = config
        self.bert = nn.BertModel(config)
        drop = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if drop is None else drop)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        nn.draw_normal(self.classifier, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
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
        del outputs["last_hidden_state"]
        outputs = {"logits": self.classifier(self.dropout(outputs.pop("pooler_output"))), **outputs}
        return outputs if labels is None else {"loss": self._loss(outputs["logits"], labels), **outputs}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind, floating = self.config.problem_type, labels.is_floating_point()
        if kind is None:
            kind = "single_label_classification" if not floating else "multi_label_classification"
            kind = "regression" if logits.shape[1] == 1 else kind
        if kind == "single_label_classification":
            if floating or labels.shape != logits.shape[:1]:
                raise ValueError(f"labels must be integers of shape {tuple(logits.shape[:1])} for {kind}")
            return nn.token_loss(logits, labels)
        labels = labels.reshape(logits.shape) if logits.shape[1] == 1 else labels
        if not floating or labels.shape != logits.shape:
            raise ValueError(f"labels must be floats of shape {tuple(logits.shape)} for {kind}")
        if kind == "regression":
            return (logits - labels).square().mean()
        return F.binary_cross_entropy_with_logits(logits, labels)
