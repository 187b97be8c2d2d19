"""Vision Transformer with torchvision's names. Dosovitskiy et al. 2020, arXiv:2010.11929.

Attention dropout is a layer, so that its masks can be injected, and the biases of the MLP start at zero
(torchvision draws them from N(0, 1e-12)).
"""

import math
from typing import Any

import torch
from torch import Tensor

from torchref import nn

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
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden_dim, EPS)
        self.self_attention: Any = nn.MultiheadAttention(
            hidden_dim, num_heads, attention_dropout, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(hidden_dim, EPS)
        self.mlp = nn.Sequential(
            nn.initialized(nn.Linear(hidden_dim, mlp_dim), "xavier"),
            nn.Activation("gelu"),
            nn.Dropout(dropout),
            nn.initialized(nn.Linear(mlp_dim, hidden_dim), "xavier"),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
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
    ):
        super().__init__()
        self.pos_embedding = nn.normal_parameter((1, seq_length, hidden_dim), 0.02)
        self.dropout = nn.Dropout(dropout)
        self.layers: Any = nn.ModuleDict(
            {
                f"encoder_layer_{i}": EncoderBlock(num_heads, hidden_dim, mlp_dim, dropout, attention_dropout)
                for i in range(num_layers)
            }
        )
        self.ln = nn.LayerNorm(hidden_dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x + self.pos_embedding)
        for i in range(len(self.layers)):
            x = self.layers[f"encoder_layer_{i}"](x)
        return self.ln(x)


class VisionTransformer(nn.Module):
    """(B, input_channels, image_size, image_size) -> (B, num_classes), from the class token's last state.

    `representation_size` adds a tanh layer before the head.

    Patches that do not tile the image and heads that do not divide the width are ValueErrors, and in the
    call an image of another size.
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
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")
        if hidden_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide hidden_dim {hidden_dim}")
        self.image_size = image_size
        self.class_token = nn.normal_parameter((1, 1, hidden_dim), 0.0)
        self.conv_proj = nn.Conv2d(input_channels, hidden_dim, patch_size, patch_size)
        nn.draw_normal(self.conv_proj, 1 / math.sqrt(input_channels * patch_size**2))
        self.encoder = Encoder(
            (image_size // patch_size) ** 2 + 1,
            num_layers,
            num_heads,
            hidden_dim,
            mlp_dim,
            dropout,
            attention_dropout,
        )
        heads: dict[str, Any] = {}
        if representation_size is not None:
            heads["pre_logits"] = nn.Linear(hidden_dim, representation_size)
            nn.draw_normal(heads["pre_logits"], 1 / math.sqrt(hidden_dim))
        heads["head"] = nn.Linear(representation_size or hidden_dim, num_classes)
        nn.draw_normal(heads["head"], 0.0)
        self.heads: Any = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(f"the image is {tuple(x.shape[2:])}, the model needs {self.image_size} squared")
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = self.encoder(torch.cat((token, x), 1))[:, 0]
        if "pre_logits" in self.heads:
            x = torch.tanh(self.heads["pre_logits"](x))
        return self.heads["head"](x)
