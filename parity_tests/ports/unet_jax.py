"""A U-Net for segmentation (Ronneberger et al. 2015, arXiv:1505.04597).

Written as the PyTorch file beside it is.
"""

from flax import nnx
from jax import Array as Tensor
from jax.numpy import concatenate as cat

from jaxarch import nn
from jaxarch.nn import functional as F


class DoubleConv(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, mid_channels: int | None = None, *, rngs: nnx.Rngs
    ):
        super().__init__()
        mid_channels = mid_channels or out_channels
        self.double_conv = nn.Sequential(
            nn.Conv2d(
                in_channels,
                mid_channels,
                kernel_size=3,
                padding=1,
                padding_mode="reflect",
                bias=False,
                rngs=rngs,
            ),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, kernel_size=3, padding=1, bias=False, rngs=rngs),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels, rngs=rngs))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, bilinear: bool = True, *, rngs: nnx.Rngs):
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels, out_channels, in_channels // 2, rngs=rngs)
        else:
            self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2, rngs=rngs)
            self.conv = DoubleConv(in_channels, out_channels, rngs=rngs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(cat((skip, self.up(x)), -1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int, *, rngs: nnx.Rngs):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, rngs=rngs)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, rngs=rngs)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.silu(self.fc1(x.mean((1, 2), keepdims=True)))
        return x * F.sigmoid(self.fc2(scale))


class UNet(nn.Module):
    def __init__(
        self, n_channels: int, n_classes: int, width: int = 8, bilinear: bool = False, *, rngs: nnx.Rngs
    ):
        super().__init__()
        factor = 2 if bilinear else 1
        self.inc = DoubleConv(n_channels, width, rngs=rngs)
        self.down1 = Down(width, 2 * width, rngs=rngs)
        self.down2 = Down(2 * width, 4 * width // factor, rngs=rngs)
        self.scale = SqueezeExcite(4 * width // factor, 2, rngs=rngs)
        self.dropout = nn.Dropout2d(0.2, rngs=rngs)
        self.up1 = Up(4 * width, 2 * width // factor, bilinear, rngs=rngs)
        self.up2 = Up(2 * width, width, bilinear, rngs=rngs)
        self.outc = nn.Conv2d(width, n_classes, kernel_size=1, rngs=rngs)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.Flatten(),
            nn.Linear(6 * 4 * width // factor, n_classes, rngs=rngs),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.dropout(self.scale(self.down2(x2)))
        x = self.up1(x3, x2)
        x = self.up2(x, x1)
        return F.log_softmax(self.outc(x), -1), self.head(x3)
