"""Generator conditioned on the label. Mirza and Osindero 2014, arXiv:1411.1784."""

import torch
from torch import Tensor

from torchref import nn


class ConditionalGenerator(nn.Module):
    """z (B, latent_dim), labels (B,) in [0, num_classes) -> rows (B, img_size).

    The embedding of the label is concatenated to z. `output_activation="tanh"` bounds the rows to [-1, 1].
    """

    def __init__(
        self,
        latent_dim: int,
        num_classes: int,
        img_size: int,
        hidden_dim: int = 256,
        output_activation: str = "identity",
    ):
        super().__init__()
        self.label_emb = nn.Embedding(num_classes, num_classes)
        self.model = nn.Sequential(
            nn.Linear(latent_dim + num_classes, hidden_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_dim, img_size),
            nn.Activation(output_activation),
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.model(torch.cat((z, self.label_emb(labels)), -1))
