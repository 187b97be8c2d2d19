"""The Vision Transformer under Hugging Face's names, shared by every architecture of the family.

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Conv2d, Dropout, LayerNorm, Linear, Module, ModuleList

from torchref.nn.hub import PROBLEM_TYPES, attend, draw_normal, hub_activation, normal_parameter


@dataclass(frozen=True)
class ViTConfig:
    """The settings of Hugging Face's config that decide what is computed.

    `pooler_output_size` None is `hidden_size`. `num_labels` and `problem_type` are read by the classifier alone: the
    type None is "regression" for one label and otherwise inferred from the labels. `output_hidden_states` and
    `output_attentions` are the defaults of the call's arguments.
    """

    model_type: ClassVar[str] = "vit"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    num_labels: int = 2
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"unknown problem_type {self.problem_type!r}: known: {', '.join(PROBLEM_TYPES)}")


class ViTPatchEmbeddings(Module):
    """The patches, each projected: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        patch = config.patch_size
        self.projection = Conv2d(config.num_channels, config.hidden_size, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).flatten(2).transpose(1, 2)


class ViTEmbeddings(Module):
    """The class token and the patches, with positions."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        count, std = (config.image_size // config.patch_size) ** 2 + 1, config.initializer_range
        self.cls_token = normal_parameter((1, 1, config.hidden_size), std)
        self.position_embeddings = normal_parameter((1, count, config.hidden_size), std)
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embeddings(x)
        token = self.cls_token.expand(x.shape[0], -1, -1)
        return self.dropout(torch.cat((token, x), 1) + self.position_embeddings)


class ViTSelfAttention(Module):
    """Multi-head attention; also the weights after dropout."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, bias)
        self.key = Linear(width, width, bias)
        self.value = Linear(width, width, bias)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        y, weights, _ = attend(q, k, v, self.heads, None, self.dropout)
        return y, weights


class ViTOutput(Module):
    """A projection and dropout."""

    def __init__(self, in_features: int, config: ViTConfig):
        super().__init__()
        self.dense = Linear(in_features, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.dense(x))


class ViTAttention(Module):
    """Attention with its output projection; also the weights."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.attention = ViTSelfAttention(config)
        self.output = ViTOutput(config.hidden_size, config)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(x)
        return self.output(y), weights


class ViTIntermediate(Module):
    """The first, wider layer of the MLP and its activation."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = hub_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(x))


class ViTLayer(Module):
    """Attention and two layers, each after a norm and beside a residual path; also the weights."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.attention = ViTAttention(config)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config.intermediate_size, config)
        self.layernorm_before = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layernorm_after = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attention(self.layernorm_before(x))
        x = x + y
        return x + self.output(self.intermediate(self.layernorm_after(x))), weights


class ViTEncoder(Module):
    """The layers one after another: the input and every layer's output, and every layer's attention weights."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.layer: Any = ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        states, attentions = [x], []
        for layer in self.layer:
            x, weights = layer(x)
            states.append(x)
            attentions.append(weights)
        return states, attentions


class ViTPooler(Module):
    """The class token's state through a layer and an activation."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.pooler_output_size or config.hidden_size)
        self.activation = hub_activation(config.pooler_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x[:, 0]))


class ViTModel(Module):
    """(B, C, image_size, image_size) -> {"last_hidden_state" (B, T, D), "pooler_output"}, and more on request.

    "hidden_states" are the embeddings and every layer's output, the last one before the last norm;
    "attentions" every layer's weights (B, H, T, T).

    Patches that do not tile the image and heads that do not divide the width are ValueErrors, and in the
    call an image of another size.
    """

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True):
        super().__init__()
        self.config = config
        self.embeddings = ViTEmbeddings(config)
        self.encoder = ViTEncoder(config)
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        draw_normal(self, config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        size = self.config.image_size
        if pixel_values.shape[2:] != (size, size):
            raise ValueError(f"the image is {tuple(pixel_values.shape[2:])}, the model needs {size} squared")
        states, attentions = self.encoder(self.embeddings(pixel_values))
        x = self.layernorm(states[-1])
        outputs: dict[str, Any] = {"last_hidden_state": x}
        if self.pooler is not None:
            outputs["pooler_output"] = self.pooler(x)
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            outputs["hidden_states"] = tuple(states)
        if self.config.output_attentions if output_attentions is None else output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs
