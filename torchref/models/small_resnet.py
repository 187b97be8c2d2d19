"""A small ResNet. He et al. 2015, arXiv:1512.03385.

Unlike the paper's, convolutions have biases and no norm follows the first one.
"""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class BiasedResidualBlock(nn.Module):
    """Two 3x3 convolutions with biases and batch norm: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.Activation("relu")
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """(B, input_channels, H, W) -> (B, num_classes). Any H and W; the feature map is an eighth of them."""

    def __init__(
        self,
        num_classes: int = 10,
        input_channels: int = 3,
        base_channels: int = 64,
        layers: Sequence[int] = (2, 2),
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, base_channels, 7, 2, 3)
        self.relu = nn.Activation("relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(base_channels, base_channels, layers[0], 1)
        self.layer2 = stage(base_channels, 2 * base_channels, layers[1], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2 * base_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(self.flatten(self.avgpool(x)))


def stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks, the first of which changes the channels and the size."""
    first = BiasedResidualBlock(in_channels, out_channels, stride)
    rest = [BiasedResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
