"""Convolutional generator of images. Radford et al. 2015, arXiv:1511.06434; names of PyTorch's example."""

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import UsageError


class DCGANGenerator(nn.Module):
    """z (B, latent_dim) -> images (B, image_size, image_size, channels) in [-1, 1].

    Transposed convolutions from 4x4 on, each doubling the size and halving the width, which ends at
    `base_channels`.

    Raises:
        UsageError: image_size is not 4 times a power of two, 8 at least.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        channels: int = 3,
        image_size: int = 64,
        base_channels: int = 64,
        *,
        rngs: nnx.Rngs,
    ):
        stages = count_stages(image_size)
        width = base_channels * 2 ** (stages - 1)
        self.to_image = nn.ToImage(latent_dim, 1, 1)
        layers: list[nn.Module] = [
            deconv(latent_dim, width, 1, 0, rngs=rngs),
            nn.BatchNorm2d(width, rngs=rngs),
            nn.Activation("relu"),
        ]
        for _ in range(stages - 1):
            layers += [
                deconv(width, width // 2, 2, 1, rngs=rngs),
                nn.BatchNorm2d(width // 2, rngs=rngs),
                nn.Activation("relu"),
            ]
            width //= 2
        layers.append(deconv(width, channels, 2, 1, rngs=rngs))
        layers.append(nn.Activation("tanh"))
        self.main = nn.Sequential(*layers)

    def __call__(self, z: Float[Array, "b z"]) -> Float[Array, "b h w c"]:
        return self.main(self.to_image(z))


def deconv(
    in_channels: int, out_channels: int, stride: int, padding: int, *, rngs: nnx.Rngs
) -> nn.ConvTranspose2d:
    """A 4x4 transposed convolution with the paper's first weights."""
    layer = nn.ConvTranspose2d(in_channels, out_channels, 4, stride, padding, bias=False, rngs=rngs)
    return nn.initialized(layer, "normal", rngs=rngs)


def count_stages(image_size: int) -> int:
    """How many times 4 is doubled to give the image size."""
    stages = image_size.bit_length() - 3
    if stages < 1 or image_size != 4 * 2**stages:
        raise UsageError(f"image_size must be 8, 16, 32, ..., not {image_size}")
    return stages
