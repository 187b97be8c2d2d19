"""Vision Transformer with torchvision's names. Dosovitskiy et al. 2020, arXiv:2010.11929.

Attention dropout is a layer, so that its masks can be injected, and the biases of the MLP start at zero
(torchvision draws them from N(0, 1e-12)).
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import DataError, UsageError

EPS = 1e-6


class EncoderBlock(nn.Module):
    """Attention and MLP, each after a norm and beside a residual path."""

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.ln_1 = nn.LayerNorm(hidden_dim, EPS, rngs=rngs)
        self.self_attention: Any = nn.MultiheadAttention(
            hidden_dim, num_heads, attention_dropout, batch_first=True, rngs=rngs
        )
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.ln_2 = nn.LayerNorm(hidden_dim, EPS, rngs=rngs)
        self.mlp = nn.Sequential(
            nn.initialized(nn.Linear(hidden_dim, mlp_dim, rngs=rngs), "xavier", rngs=rngs),
            nn.Activation("gelu"),
            nn.Dropout(dropout, rngs=rngs),
            nn.initialized(nn.Linear(mlp_dim, hidden_dim, rngs=rngs), "xavier", rngs=rngs),
            nn.Dropout(dropout, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + self.dropout(y)
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Positional embedding, blocks and a final norm."""

    def __init__(
        self,
        seq_length: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.pos_embedding = nn.normal_parameter((1, seq_length, hidden_dim), 0.02, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.layers: Any = nn.ModuleDict(
            {
                f"encoder_layer_{i}": EncoderBlock(
                    num_heads, hidden_dim, mlp_dim, dropout, attention_dropout, rngs=rngs
                )
                for i in range(num_layers)
            }
        )
        self.ln = nn.LayerNorm(hidden_dim, EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = self.dropout(x + self.pos_embedding[...])
        for i in range(len(self.layers)):
            x = self.layers[f"encoder_layer_{i}"](x)
        return self.ln(x)


class VisionTransformer(nn.Module):
    """(B, image_size, image_size, input_channels) -> (B, num_classes), from the class token's last state.

    `representation_size` adds a tanh layer before the head.

    Raises:
        UsageError: patches that do not tile the image, heads that do not divide the width.
        DataError: in the call, an image of another size.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        num_layers: int = 12,
        num_heads: int = 12,
        hidden_dim: int = 768,
        mlp_dim: int = 3072,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        num_classes: int = 1000,
        representation_size: int | None = None,
        input_channels: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        if image_size % patch_size:
            raise UsageError(f"patch_size {patch_size} does not divide image_size {image_size}")
        if hidden_dim % num_heads:
            raise UsageError(f"num_heads {num_heads} does not divide hidden_dim {hidden_dim}")
        self.image_size = image_size
        self.class_token = nn.normal_parameter((1, 1, hidden_dim), 0.0, rngs=rngs)
        self.conv_proj = nn.Conv2d(input_channels, hidden_dim, patch_size, patch_size, rngs=rngs)
        nn.draw_normal(self.conv_proj, 1 / math.sqrt(input_channels * patch_size**2), rngs=rngs)
        self.encoder = Encoder(
            (image_size // patch_size) ** 2 + 1,
            num_layers,
            num_heads,
            hidden_dim,
            mlp_dim,
            dropout,
            attention_dropout,
            rngs=rngs,
        )
        heads: dict[str, Any] = {}
        if representation_size is not None:
            heads["pre_logits"] = nn.Linear(hidden_dim, representation_size, rngs=rngs)
            nn.draw_normal(heads["pre_logits"], 1 / math.sqrt(hidden_dim), rngs=rngs)
        heads["head"] = nn.Linear(representation_size or hidden_dim, num_classes, rngs=rngs)
        nn.draw_normal(heads["head"], 0.0, rngs=rngs)
        self.heads: Any = nn.ModuleDict(heads)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n"]:
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise DataError(f"the image is {x.shape[1:3]}, the model needs {self.image_size} squared")
        x = self.conv_proj(x)
        x = x.reshape(x.shape[0], -1, x.shape[3])
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = self.encoder(jnp.concatenate((token, x), 1))[:, 0]
        if "pre_logits" in self.heads:
            x = jnp.tanh(self.heads["pre_logits"](x))
        return self.heads["head"](x)
