"""Discriminator of StyleGAN2, small. Karras et al. 2020, arXiv:1912.04958; names of the authors' code."""

import math

from torch import Tensor

from torchref import nn


class StyleGANDiscriminator(nn.Module):
    """Images (B, channels, image_size, image_size) -> (B, 1), a logit.

    `channels_at` are the channels at the image's size, half of it, ..., 4x4: they set the image size. Groups
    of 4 images share a map of their standard deviation.
    """

    def __init__(self, channels: int = 3, channels_at: tuple[int, ...] = (128, 256, 512, 512, 512)):
        super().__init__()
        self.sizes = tuple(4 * 2**i for i in reversed(range(len(channels_at))))
        self.fromrgb = nn.EqualizedConv2d(channels, channels_at[0], 1, leak=True)
        for i, size in enumerate(self.sizes[:-1]):
            setattr(self, f"b{size}", Block(channels_at[i], channels_at[i + 1]))
        self.b4 = Epilogue(channels_at[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.fromrgb(x)
        for size in self.sizes:
            x = getattr(self, f"b{size}")(x)
        return x


class Block(nn.Module):
    """Two convolutions and a shortcut that halve the size: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv0 = nn.EqualizedConv2d(in_channels, in_channels, 3, leak=True)
        self.conv1 = nn.EqualizedConv2d(in_channels, out_channels, 3, down=True, leak=True)
        self.skip = nn.EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv1(self.conv0(x)) + self.skip(x)) / math.sqrt(2)


class Epilogue(nn.Module):
    """Standard deviation over the batch, a convolution and two layers: (B, C, 4, 4) -> (B, 1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.mbstd = nn.MinibatchStd()
        self.conv = nn.EqualizedConv2d(channels + 1, channels, 3, leak=True)
        self.flatten = nn.Flatten()
        self.fc = nn.EqualizedLinear(channels * 16, channels, leak=True)
        self.out = nn.EqualizedLinear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc(self.flatten(self.conv(self.mbstd(x)))))
