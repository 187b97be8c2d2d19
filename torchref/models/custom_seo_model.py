"""Text classifier with a choice of norms, residuals, activation, initialiser and checkpointing.

Vaswani et al. 2017, arXiv:1706.03762.
"""

from typing import Any

from torch import Tensor

from torchref import nn

CustomModelConfig = nn.CustomModelConfig


class CustomSEOModel(nn.Module):
    """ids (B, T), attention_mask (B, T) True where a token is real -> logits (B, num_classes).

    The pooled sequence, dropped out, goes through one linear layer. Errors: `nn.TextEncoder`, `nn.Pooling`.
    """

    def __init__(self, config: CustomModelConfig):
        super().__init__()
        self.config = config
        self.encoder = config.encoder()
        self.pooling = nn.Pooling(config.pooling_strategy, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.classifier = nn.Linear(config.hidden_size, config.num_classes)
        nn.initialized(self.classifier, config.initialization_method)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.encoder(input_ids, attention_mask)
        return self.classifier(self.dropout(self.pooling(x, attention_mask)))


def create_custom_model(
    config: CustomModelConfig | str, num_classes: int | None = None, **settings: Any
) -> CustomSEOModel:
    """The model of a config, or of a model_name, num_classes (2 if not given) and CustomModelConfig's settings."""
    if num_classes is not None:
        settings["num_classes"] = num_classes
    return CustomSEOModel(nn.text_config(config, **settings))
