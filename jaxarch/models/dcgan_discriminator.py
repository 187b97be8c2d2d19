"""Convolutional discriminator of images. Radford et al. 2015, arXiv:1511.06434; names of PyTorch's example.

With spectral norm: Miyato et al. 2018, arXiv:1802.05957.
"""

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import UsageError


class DCGANDiscriminator(nn.Module):
    """Images (B, image_size, image_size, channels) -> (B, 1), the probability that they are real.

    Strided convolutions down to 4x4, batch norm in all but the first. `spectral_norm` takes the place of
    batch norm, which then takes no index, and convolutions get a bias. `output_activation="identity"` gives
    logits, or the score of a critic. With `return_features` also the last layer's input (B, F), for feature
    matching.

    Raises:
        UsageError: image_size is not 4 times a power of two, 8 at least.
    """

    def __init__(
        self,
        channels: int = 3,
        image_size: int = 64,
        base_channels: int = 64,
        spectral_norm: bool = False,
        output_activation: str = "sigmoid",
        *,
        rngs: nnx.Rngs,
    ):
        layers: list[nn.Module] = []
        inner, width = channels, base_channels
        for stage in range(count_stages(image_size)):
            layers.append(conv(inner, width, 2, 1, spectral_norm, rngs=rngs))
            if stage > 0 and not spectral_norm:
                layers.append(nn.BatchNorm2d(width, rngs=rngs))
            layers.append(nn.LeakyReLU(0.2))
            inner, width = width, width * 2
        layers += [conv(inner, 1, 1, 0, spectral_norm, rngs=rngs), nn.Activation(output_activation)]
        self.main = nn.Sequential(*layers)
        self.flatten = nn.Flatten()

    def __call__(
        self, x: Float[Array, "b h w c"], return_features: bool = False
    ) -> Float[Array, "b 1"] | tuple[Float[Array, "b 1"], Float[Array, "b f"]]:
        *hidden, score, activation = self.main
        for layer in hidden:
            x = layer(x)
        y = self.flatten(activation(score(x)))
        return (y, self.flatten(x)) if return_features else y


def conv(
    in_channels: int, out_channels: int, stride: int, padding: int, spectral_norm: bool, *, rngs: nnx.Rngs
) -> nn.SpectralConv2d | nn.Conv2d:
    """A 4x4 convolution, the plain one with the paper's first weights."""
    if spectral_norm:
        return nn.SpectralConv2d(in_channels, out_channels, 4, stride, padding, rngs=rngs)
    layer = nn.Conv2d(in_channels, out_channels, 4, stride, padding, bias=False, rngs=rngs)
    return nn.initialized(layer, "normal", rngs=rngs)


def count_stages(image_size: int) -> int:
    """How many times 4 is doubled to give the image size."""
    stages = image_size.bit_length() - 3
    if stages < 1 or image_size != 4 * 2**stages:
        raise UsageError(f"image_size must be 8, 16, 32, ..., not {image_size}")
    return stages
