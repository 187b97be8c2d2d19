"""Vision Transformer that classifies an image, with Hugging Face's names (`ViTForImageClassification`).

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class ViTForImageClassification(nn.Module):
    """(B, image_size, image_size, C) -> {"logits" (B, num_labels)} of the class token; with labels also "loss";
    states and weights on request.

    The problem is the config's or inferred from the labels: see `nn.classification_loss`.

    Raises:
        UsageError, DataError: as `ViTModel`, and for labels that do not fit the problem.
    """

    def __init__(self, config: nn.ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vit = nn.ViTModel(config, add_pooling_layer=False, rngs=rngs)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels, rngs=rngs)
        nn.draw_normal(self.classifier, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        pixel_values: Float[Array, "b h w c"],
        labels: Array | None = None,
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
