"""BERT that marks the answer in a text, with Hugging Face's names (`BertForQuestionAnswering`).

Devlin et al. 2018, arXiv:1810.04805.
"""

from typing import Any

from torch import Tensor

from torchref import nn


class BertForQuestionAnswering(nn.Module):
    """BertModel's inputs -> {"start_logits" (B, T), "end_logits" (B, T)}: scores of where the answer begins and ends;
    with both positions (B,) also "loss"; states and weights on request.

    As in `transformers`, a position beyond the text does not count, and one below 0 is 0.

    Errors are those of `BertModel`.
    """

    def __init__(self, config: nn.BertConfig):
        super().__init__()
        self.config = config
        self.bert = nn.BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        nn.draw_normal(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
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

    def _loss(self, logits: Tensor, positions: Tensor) -> Tensor:
        positions = positions.clamp(min=0)
        return nn.token_loss(logits, positions.where(positions < logits.shape[1], -100))
