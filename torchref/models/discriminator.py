"""Fully connected discriminator of images. Goodfellow et al. 2014, arXiv:1406.2661."""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class Discriminator(nn.Module):
    """Images (B, img_channels, image_size, image_size) -> (B, 1), the probability that they are real.

    `output_activation="identity"` gives logits, or the score of a critic. With `return_features` also the
    last layer's input (B, F), for feature matching.
    """

    def __init__(
        self,
        img_channels: int = 3,
        image_size: int = 28,
        hidden_dims: Sequence[int] = (512, 256),
        output_activation: str = "sigmoid",
    ):
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = img_channels * image_size**2
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim), nn.LeakyReLU(0.2)]
            width = dim
        layers += [nn.Linear(width, 1), nn.Activation(output_activation)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        *hidden, score, activation = self.net
        for layer in hidden:
            x = layer(x)
        y = activation(score(x))
        return (y, x) if return_features else y
