"""BERT that predicts masked words, with Hugging Face's names (`BertForMaskedLM`).

Devlin et al. 2018, arXiv:1810.04805. The output projection is tied to the word embeddings.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref import nn


class BertPredictionHeadTransform(nn.Module):
    """A layer, its activation and a norm."""

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = nn.hub_activation(config.hidden_act)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.transform_act_fn(self.dense(x)))


class BertLMPredictionHead(nn.Module):
    """Scores of every word: the embedding table is an argument, the bias a parameter."""

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return F.linear(self.transform(x), table, self.bias)


class BertOnlyMLMHead(nn.Module):
    """The head, under Hugging Face's name for it."""

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.predictions = BertLMPredictionHead(config)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return self.predictions(x, table)


class BertForMaskedLM(nn.Module):
    """BertModel's inputs -> {"logits" (B, T, V)}; with labels (B, T) also "loss"; states and weights on request.

    Labels of -100, that is every word that was not masked, do not count; if none counts the loss is 0.

    Errors are those of `BertModel`; labels of another shape than the ids are a ValueError.
    """

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.config = config
        self.bert = nn.BertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        nn.draw_normal(self.cls, config.initializer_range)

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
        x = outputs.pop("last_hidden_state")
        nn.check_same_shape(x.shape[:2], labels=labels)
        outputs = {"logits": self.cls(x, self.bert.embeddings.word_embeddings.weight), **outputs}
        return outputs if labels is None else {"loss": nn.token_loss(outputs["logits"], labels), **outputs}
