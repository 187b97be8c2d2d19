"""Fully connected discriminator of images. Goodfellow et al. 2014, arXiv:1406.2661."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class Discriminator(nn.Module):
    """Images (B, image_size, image_size, img_channels) -> (B, 1), the probability that they are real.

    `output_activation="identity"` gives logits, or the score of a critic. With `return_features` also the
    last layer's input (B, F), for feature matching.
    """

    def __init__(
        self,
        img_channels: int = 3,
        image_size: int = 28,
        hidden_dims: Sequence[int] = (512, 256),
        output_activation: str = "sigmoid",
        *,
        rngs: nnx.Rngs,
    ):
        layers: list[nn.Module] = [nn.Flatten()]
        width = img_channels * image_size**2
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim, rngs=rngs), nn.LeakyReLU(0.2)]
            width = dim
        layers += [nn.Linear(width, 1, rngs=rngs), nn.Activation(output_activation)]
        self.net = nn.Sequential(*layers)

    def __call__(
        self, x: Float[Array, "b h w c"], return_features: bool = False
    ) -> Float[Array, "b 1"] | tuple[Float[Array, "b 1"], Float[Array, "b f"]]:
        *hidden, score, activation = self.net
        for layer in hidden:
            x = layer(x)
        y = activation(score(x))
        return (y, x) if return_features else y
