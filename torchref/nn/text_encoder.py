"""The transformer encoder of the text models, and its settings."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.nn import Embedding, Linear, Module, ModuleList
from torch.utils.checkpoint import checkpoint

from torchref.nn.activation import Function
from torchref.nn.init import initialized
from torchref.nn.masks import valid_steps
from torchref.nn.position import PositionalEncoding
from torchref.nn.transformer import TransformerBlock, TransformerBlockConfig

# Token counts of the tokenizers that a model_name stands for.
VOCABULARIES = {
    "bert-base-uncased": 30522,
    "bert-base-cased": 28996,
    "bert-base-multilingual-cased": 119547,
    "distilbert-base-uncased": 30522,
    "gpt2": 50257,
    "roberta-base": 50265,
    "xlm-roberta-base": 250002,
}


class TextEncoder(Module):
    """ids (B, T), mask (B, T) True where a token is real -> (B, T, d_model). Vaswani et al. 2017, post-norm.

    A mask (B, T, T), or one that broadcasts to (B, H, T, T), says for each token which others it may attend to.

    Embeddings N(0, 0.02^2), times sqrt(d_model), plus sinusoids; `use_relative_pos` adds the relative
    positions of Shaw et al. 2018. Linear weights start as `initialization` says, biases at zero.
    `use_layer_norm`, `use_residual`: see TransformerBlockConfig. `gradient_checkpointing` computes activations
    again in the backward pass (Chen et al. 2016): the numbers are the same. Unknown names, T beyond
    `max_len` and a mask of another shape are ValueErrors, ids outside the vocabulary an IndexError.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        d_ff: int = 2048,
        max_len: int = 5000,
        dropout: float = 0.1,
        activation: str | Function = "gelu",
        use_relative_pos: bool = True,
        use_layer_norm: bool = True,
        use_residual: bool = True,
        initialization: str = "xavier",
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.d_model, self.gradient_checkpointing = d_model, gradient_checkpointing
        self.word_embedding = initialized(Embedding(vocab_size, d_model), "normal")
        self.positional_encoding = PositionalEncoding(d_model, max_len, dropout)
        config = TransformerBlockConfig(use_layer_norm=use_layer_norm, use_residual=use_residual)
        self.layers: Any = ModuleList(
            [
                TransformerBlock(d_model, n_heads, d_ff, dropout, activation, use_relative_pos, config)
                for _ in range(n_layers)
            ]
        )
        initialize_linears(self, initialization)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        mask = valid_steps(input_ids, mask) if mask is not None and mask.ndim == 2 else mask
        x = self.positional_encoding(self.word_embedding(input_ids) * math.sqrt(self.d_model))
        for layer in self.layers:
            call = functools.partial(remat, layer) if self.gradient_checkpointing else layer
            x = call(x, mask)
        return x


@dataclass(frozen=True)
class CustomModelConfig:
    """Settings of a text model.

    `model_name` may name a tokenizer, which gives `vocab_size` where that is None; any other name has the vocabulary
    of bert-base-uncased.
    """

    model_name: str
    num_classes: int
    hidden_size: int = 768
    num_layers: int = 6
    num_heads: int = 12
    dropout_rate: float = 0.1
    max_length: int = 512
    use_layer_norm: bool = True
    use_residual_connections: bool = True
    activation_function: str = "gelu"
    initialization_method: str = "xavier"
    gradient_checkpointing: bool = False
    vocab_size: int | None = None
    pooling_strategy: str = "cls"

    def encoder(self) -> TextEncoder:
        """The encoder of these settings; its feed-forward networks are four times as wide as the model."""
        return TextEncoder(
            self.vocab_size or VOCABULARIES.get(self.model_name, VOCABULARIES["bert-base-uncased"]),
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            4 * self.hidden_size,
            self.max_length,
            self.dropout_rate,
            self.activation_function,
            use_relative_pos=False,
            use_layer_norm=self.use_layer_norm,
            use_residual=self.use_residual_connections,
            initialization=self.initialization_method,
            gradient_checkpointing=self.gradient_checkpointing,
        )


def text_config(config: CustomModelConfig | str, **settings: Any) -> CustomModelConfig:
    """A config with other settings, or one of a model_name and its settings; num_classes is 2 if not given."""
    if isinstance(config, str):
        return CustomModelConfig(config, **{"num_classes": 2, **settings})
    return replace(config, **settings)


def initialize_linears(module: Module, name: str) -> None:
    """Draw every Linear of a module by the named initialiser, biases at zero."""
    for layer in module.modules():
        if isinstance(layer, Linear):
            initialized(layer, name)


def remat(layer: TransformerBlock, x: Tensor, mask: Tensor | None) -> Tensor:
    """A layer whose activations are computed again in the backward pass (Chen et al. 2016)."""
    return checkpoint(layer, x, mask, use_reentrant=False)
