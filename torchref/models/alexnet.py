"""AlexNet in its one-tower form. Krizhevsky 2014, arXiv:1404.5997, with torchvision's names."""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class AlexNet(nn.Module):
    """(B, input_channels, H, W) -> (B, num_classes). H and W of 63 or more; the map is pooled to 6 x 6."""

    def __init__(
        self,
        num_classes: int = 1000,
        dropout: float = 0.5,
        input_channels: int = 3,
        channels: Sequence[int] = (64, 192, 384, 256, 256),
        hidden_dim: int = 4096,
    ):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(input_channels, channels[0], 11, 4, 2),
            nn.Activation("relu"),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(channels[0], channels[1], 5, padding=2),
            nn.Activation("relu"),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(channels[1], channels[2], 3, padding=1),
            nn.Activation("relu"),
            nn.Conv2d(channels[2], channels[3], 3, padding=1),
            nn.Activation("relu"),
            nn.Conv2d(channels[3], channels[4], 3, padding=1),
            nn.Activation("relu"),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels[4] * 36, hidden_dim),
            nn.Activation("relu"),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
            nn.Activation("relu"),
            nn.Linear(hidden_dim, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))
