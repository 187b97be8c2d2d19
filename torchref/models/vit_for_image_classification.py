"""Vision Transformer that classifies an image, with Hugging Face's names (`ViTForImageClassification`).

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from typing import Any

from torch import Tensor

from torchref import nn


class ViTForImageClassification(nn.Module):
    """(B, C, image_size, image_size) -> {"logits" (B, num_labels)} of the class token; with labels also "loss";
    states and weights on request.

    The problem is the config's or inferred from the labels: see `nn.classification_loss`.

    Errors are those of `ViTModel`; labels that do not fit the problem are a ValueError.
    """

    def __init__(self, config: nn.ViTConfig):
        super().__init__()
        self.config = config
        self.vit = nn.ViTModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        nn.draw_normal(self.classifier, config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        outputs = self.vit(pixel_values, output_hidden_states, output_attentions)
        outputs = {"logits": self.classifier(outputs.pop("last_hidden_state")[:, 0]), **outputs}
        if labels is None:
            return outputs
        return {
            "loss": nn.classification_loss(outputs["logits"], labels, self.config.problem_type),
            **outputs,
        }
