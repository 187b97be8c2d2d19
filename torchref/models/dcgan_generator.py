"""Convolutional generator of images. Radford et al. 2015, arXiv:1511.06434; names of PyTorch's example."""

from torch import Tensor

from torchref import nn


class DCGANGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, channels, image_size, image_size) in [-1, 1].

    Transposed convolutions from 4x4 on, each doubling the size and halving the width, which ends at
    `base_channels`. An image_size that is not 4 times a power of two, 8 at least, is a ValueError.
    """

    def __init__(
        self, latent_dim: int = 100, channels: int = 3, image_size: int = 64, base_channels: int = 64
    ):
        super().__init__()
        stages = count_stages(image_size)
        width = base_channels * 2 ** (stages - 1)
        self.to_image = nn.ToImage(latent_dim, 1, 1)
        layers: list[nn.Module] = [
            deconv(latent_dim, width, 1, 0),
            nn.BatchNorm2d(width),
            nn.Activation("relu"),
        ]
        for _ in range(stages - 1):
            layers += [
                deconv(width, width // 2, 2, 1),
                nn.BatchNorm2d(width // 2),
                nn.Activation("relu"),
            ]
            width //= 2
        layers.append(deconv(width, channels, 2, 1))
        layers.append(nn.Activation("tanh"))
        self.main = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.main(self.to_image(z))


def deconv(in_channels: int, out_channels: int, stride: int, padding: int) -> nn.ConvTranspose2d:
    """A 4x4 transposed convolution with the paper's first weights."""
    layer = nn.ConvTranspose2d(in_channels, out_channels, 4, stride, padding, bias=False)
    return nn.initialized(layer, "normal")


def count_stages(image_size: int) -> int:
    """How many times 4 is doubled to give the image size."""
    stages = image_size.bit_length() - 3
    if stages < 1 or image_size != 4 * 2**stages:
        raise ValueError(f"image_size must be 8, 16, 32, ..., not {image_size}")
    return stages
