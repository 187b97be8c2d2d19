"""Text classifier with a choice of norms, residuals, activation, initialiser and checkpointing.

Vaswani et al. 2017, arXiv:1706.03762.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn

CustomModelConfig = nn.CustomModelConfig


class CustomSEOModel(nn.Module):
    """ids (B, T), attention_mask (B, T) True where a token is real -> logits (B, num_classes).

    The pooled sequence, dropped out, goes through one linear layer. Errors: `nn.TextEncoder`, `nn.Pooling`.
    """

    def __init__(self, config: CustomModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = config.encoder(rngs=rngs)
        self.pooling = nn.Pooling(config.pooling_strategy, config.hidden_size, rngs=rngs)
        self.dropout = nn.Dropout(config.dropout_rate, rngs=rngs)
        self.classifier = nn.Linear(config.hidden_size, config.num_classes, rngs=rngs)
        nn.initialized(self.classifier, config.initialization_method, rngs=rngs)

    def __call__(
        self, input_ids: Int[Array, "b t"], attention_mask: Array | None = None
    ) -> Float[Array, "b c"]:
        x = self.encoder(input_ids, attention_mask)
        return self.classifier(self.dropout(self.pooling(x, attention_mask)))


def create_custom_model(
    config: CustomModelConfig | str, num_classes: int | None = None, *, rngs: nnx.Rngs, **settings: Any
) -> CustomSEOModel:
    """The model of a config, or of a model_name, num_classes (2 if not given) and CustomModelConfig's settings."""
    if num_classes is not None:
        settings["num_classes"] = num_classes
    return CustomSEOModel(nn.text_config(config, **settings), rngs=rngs)
