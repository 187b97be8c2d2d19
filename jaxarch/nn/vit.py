"""The Vision Transformer under Hugging Face's names, shared by every architecture of the family.

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.containers import ModuleList
from jaxarch.nn.conv import Conv2d
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.hub import PROBLEM_TYPES, attend, draw_normal, hub_activation, normal_parameter
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.norm import LayerNorm


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
            raise UsageError(f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}")
        if self.image_size % self.patch_size:
            raise UsageError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise UsageError(f"unknown problem_type {self.problem_type!r}: known: {', '.join(PROBLEM_TYPES)}")


class ViTPatchEmbeddings(Module):
    """The patches, each projected: (B, H, W, C) -> (B, N, D)."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        patch = config.patch_size
        self.projection = Conv2d(config.num_channels, config.hidden_size, patch, patch, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        x = self.projection(x)
        return x.reshape(x.shape[0], -1, x.shape[3])


class ViTEmbeddings(Module):
    """The class token and the patches, with positions."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        count, std = (config.image_size // config.patch_size) ** 2 + 1, config.initializer_range
        self.cls_token = normal_parameter((1, 1, config.hidden_size), std, rngs=rngs)
        self.position_embeddings = normal_parameter((1, count, config.hidden_size), std, rngs=rngs)
        self.patch_embeddings = ViTPatchEmbeddings(config, rngs=rngs)
        self.dropout = Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        x = self.patch_embeddings(x)
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        return self.dropout(jnp.concatenate((token, x), 1) + self.position_embeddings[...].astype(x.dtype))


class ViTSelfAttention(Module):
    """Multi-head attention; also the weights after dropout."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        width, bias = config.hidden_size, config.qkv_bias
        self.heads = config.num_attention_heads
        self.query = Linear(width, width, bias, rngs=rngs)
        self.key = Linear(width, width, bias, rngs=rngs)
        self.value = Linear(width, width, bias, rngs=rngs)
        self.dropout = Dropout(config.attention_probs_dropout_prob, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        q, k, v = self.query(x), self.key(x), self.value(x)
        y, weights, _ = attend(q, k, v, self.heads, None, self.dropout)
        return y, weights


class ViTOutput(Module):
    """A projection and dropout."""

    def __init__(self, in_features: int, config: ViTConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(in_features, config.hidden_size, rngs=rngs)
        self.dropout = Dropout(config.hidden_dropout_prob, rngs=rngs)

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b t d"]:
        return self.dropout(self.dense(x))


class ViTAttention(Module):
    """Attention with its output projection; also the weights."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.attention = ViTSelfAttention(config, rngs=rngs)
        self.output = ViTOutput(config.hidden_size, config, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        y, weights = self.attention(x)
        return self.output(y), weights


class ViTIntermediate(Module):
    """The first, wider layer of the MLP and its activation."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.intermediate_act_fn = hub_activation(config.hidden_act)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t i"]:
        return self.intermediate_act_fn(self.dense(x))


class ViTLayer(Module):
    """Attention and two layers, each after a norm and beside a residual path; also the weights."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.attention = ViTAttention(config, rngs=rngs)
        self.intermediate = ViTIntermediate(config, rngs=rngs)
        self.output = ViTOutput(config.intermediate_size, config, rngs=rngs)
        self.layernorm_before = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.layernorm_after = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Float[Array, "b h t t"]]:
        y, weights = self.attention(self.layernorm_before(x))
        x = x + y
        return x + self.output(self.intermediate(self.layernorm_after(x))), weights


class ViTEncoder(Module):
    """The layers one after another: the input and every layer's output, and every layer's attention weights."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.layer: Any = ModuleList([ViTLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[list[Array], list[Array]]:
        states, attentions = [x], []
        for layer in self.layer:
            x, weights = layer(x)
            states.append(x)
            attentions.append(weights)
        return states, attentions


class ViTPooler(Module):
    """The class token's state through a layer and an activation."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.dense = Linear(config.hidden_size, config.pooler_output_size or config.hidden_size, rngs=rngs)
        self.activation = hub_activation(config.pooler_act)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b p"]:
        return self.activation(self.dense(x[:, 0]))


class ViTModel(Module):
    """(B, image_size, image_size, C) -> {"last_hidden_state" (B, T, D), "pooler_output"}, and more on request.

    "hidden_states" are the embeddings and every layer's output, the last one before the last norm;
    "attentions" every layer's weights (B, H, T, T).

    Raises:
        UsageError: patches that do not tile the image, heads that do not divide the width.
        DataError: in the call, an image of another size.
    """

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = ViTEmbeddings(config, rngs=rngs)
        self.encoder = ViTEncoder(config, rngs=rngs)
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)
        self.pooler = ViTPooler(config, rngs=rngs) if add_pooling_layer else nnx.data(None)
        draw_normal(self, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        pixel_values: Float[Array, "b h w c"],
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        size = self.config.image_size
        if pixel_values.shape[1:3] != (size, size):
            raise DataError(f"the image is {pixel_values.shape[1:3]}, the model needs {size} squared")
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
