"""Residual CNN with squeeze and excitation.

He et al. 2015, arXiv:1512.03385; Hu et al. 2017, arXiv:1709.01507.
"""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class AdvancedCNN(nn.Module):
    """(B, input_channels, H, W) -> (B, num_classes). Any H and W of 2 or more.

    Stages 2 to 4 halve the map; attention scales the channels of the last one.
    """

    def __init__(
        self,
        input_channels: int = 3,
        num_classes: int = 10,
        base_channels: int = 64,
        num_blocks: Sequence[int] = (2, 2, 2, 2),
        use_attention: bool = True,
        dropout_rate: float = 0.5,
    ):
        super().__init__()
        widths = [base_channels * 2**i for i in range(4)]
        self.conv1 = nn.ConvBlock(input_channels, base_channels, 7, 2, 3)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(base_channels, widths[0], num_blocks[0], 1)
        self.layer2 = stage(widths[0], widths[1], num_blocks[1], 2)
        self.layer3 = stage(widths[1], widths[2], num_blocks[2], 2)
        self.layer4 = stage(widths[2], widths[3], num_blocks[3], 2)
        self.attention = nn.SEBlock(widths[3]) if use_attention else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.attention is not None:
            x = self.attention(x)
        return self.fc(self.dropout(self.flatten(self.avgpool(x))))


def stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Residual blocks, the first of which changes the channels and the size."""
    first = nn.ResidualBlock(in_channels, out_channels, stride)
    rest = [nn.ResidualBlock(out_channels, out_channels) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
