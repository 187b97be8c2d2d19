"""Fully connected generator of images. Goodfellow et al. 2014, arXiv:1406.2661."""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class Generator(nn.Module):
    """z (B, latent_dim) -> images (B, img_channels, image_size, image_size) in [-1, 1]."""

    def __init__(
        self,
        latent_dim: int,
        img_channels: int = 3,
        image_size: int = 28,
        hidden_dims: Sequence[int] = (256, 512),
    ):
        super().__init__()
        layers: list[nn.Module] = []
        width = latent_dim
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim), nn.LeakyReLU(0.2)]
            width = dim
        layers += [nn.Linear(width, img_channels * image_size**2), nn.Activation("tanh")]
        self.net = nn.Sequential(*layers)
        self.to_image = nn.ToImage(img_channels, image_size, image_size)

    def forward(self, z: Tensor) -> Tensor:
        return self.to_image(self.net(z))
