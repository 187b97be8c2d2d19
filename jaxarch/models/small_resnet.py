"""A small ResNet. He et al. 2015, arXiv:1512.03385.

Unlike the paper's, convolutions have biases and no norm follows the first one.
"""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class BiasedResidualBlock(nn.Module):
    """Two 3x3 convolutions with biases and batch norm: (B, H, W, C) -> (B, H / stride, W / stride, C')."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, rngs=rngs)
        self.bn1 = nn.BatchNorm2d(out_channels, rngs=rngs)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, rngs=rngs)
        self.bn2 = nn.BatchNorm2d(out_channels, rngs=rngs)
        self.relu = nn.Activation("relu")
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, rngs=rngs),
                nn.BatchNorm2d(out_channels, rngs=rngs),
            )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """(B, H, W, input_channels) -> (B, num_classes). Any H and W; the feature map is an eighth of them."""

    def __init__(
        self,
        num_classes: int = 10,
        input_channels: int = 3,
        base_channels: int = 64,
        layers: Sequence[int] = (2, 2),
        *,
        rngs: nnx.Rngs,
    ):
        self.conv1 = nn.Conv2d(input_channels, base_channels, 7, 2, 3, rngs=rngs)
        self.relu = nn.Activation("relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(base_channels, base_channels, layers[0], 1, rngs=rngs)
        self.layer2 = stage(base_channels, 2 * base_channels, layers[1], 2, rngs=rngs)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2 * base_channels, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b o"]:
        x = self.maxpool(self.relu(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.flatten(self.avgpool(x)))


def stage(in_channels: int, out_channels: int, blocks: int, stride: int, *, rngs: nnx.Rngs) -> nn.Sequential:
    """Residual blocks, the first of which changes the channels and the size."""
    first = BiasedResidualBlock(in_channels, out_channels, stride, rngs=rngs)
    rest = [BiasedResidualBlock(out_channels, out_channels, rngs=rngs) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
