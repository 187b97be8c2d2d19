"""ResNet. He et al. 2015, arXiv:1512.03385.

With torchvision's names, and its stride on the 3x3 convolution of a bottleneck.
"""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut: (B, C, H, W) -> (B, 4 * channels, H / stride, W / stride).

    `width` is that of the 3x3 convolution, whose groups make it a ResNeXt's (Xie et al. 2016).
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, groups: int = 1, width: int = 64):
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.Activation("relu")
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """(B, input_channels, H, W) -> (B, num_classes). Any H and W; the feature map is a 32nd of them.

    `block` is "basic" (18 and 34 layers) or "bottleneck"; groups and width_per_group are the latter's.
    """

    def __init__(
        self,
        block: str = "basic",
        layers: Sequence[int] = (2, 2, 2, 2),
        num_classes: int = 1000,
        groups: int = 1,
        width_per_group: int = 64,
        input_channels: int = 3,
        base_channels: int = 64,
    ):
        super().__init__()
        if block not in ("basic", "bottleneck"):
            raise ValueError(f"unknown block {block!r}: known: basic, bottleneck")
        if block == "basic" and (groups, width_per_group) != (1, 64):
            raise ValueError("groups and width_per_group are for bottlenecks: leave them at 1 and 64")

        def stage(in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
            out_channels = channels if block == "basic" else 4 * channels
            width = channels * width_per_group // 64 * groups
            blocks: list[nn.Module] = []
            for i in range(count):
                first = (in_channels, stride) if i == 0 else (out_channels, 1)
                if block == "basic":
                    blocks.append(nn.ResidualBlock(first[0], channels, first[1]))
                else:
                    blocks.append(Bottleneck(first[0], channels, first[1], groups, width))
            return nn.Sequential(*blocks)

        widths = [base_channels * 2**i for i in range(4)]
        outs = widths if block == "basic" else [4 * w for w in widths]
        self.conv1 = nn.Conv2d(input_channels, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.Activation("relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(base_channels, widths[0], layers[0], 1)
        self.layer2 = stage(outs[0], widths[1], layers[1], 2)
        self.layer3 = stage(outs[1], widths[2], layers[2], 2)
        self.layer4 = stage(outs[2], widths[3], layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(outs[3], num_classes)
        nn.initialize_all(self, nn.Conv2d, "he_fan_out")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))
