"""Discriminator of StyleGAN2, small. Karras et al. 2020, arXiv:1912.04958; names of the authors' code."""

import math

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class StyleGANDiscriminator(nn.Module):
    """Images (B, image_size, image_size, channels) -> (B, 1), a logit.

    `channels_at` are the channels at the image's size, half of it, ..., 4x4: they set the image size. Groups
    of 4 images share a map of their standard deviation.
    """

    def __init__(
        self, channels: int = 3, channels_at: tuple[int, ...] = (128, 256, 512, 512, 512), *, rngs: nnx.Rngs
    ):
        self.sizes = tuple(4 * 2**i for i in reversed(range(len(channels_at))))
        self.fromrgb = nn.EqualizedConv2d(channels, channels_at[0], 1, leak=True, rngs=rngs)
        for i, size in enumerate(self.sizes[:-1]):
            setattr(self, f"b{size}", Block(channels_at[i], channels_at[i + 1], rngs=rngs))
        self.b4 = Epilogue(channels_at[-1], rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1"]:
        x = self.fromrgb(x)
        for size in self.sizes:
            x = getattr(self, f"b{size}")(x)
        return x


class Block(nn.Module):
    """Two convolutions and a shortcut that halve the size: (B, H, W, C) -> (B, H / 2, W / 2, C')."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.conv0 = nn.EqualizedConv2d(in_channels, in_channels, 3, leak=True, rngs=rngs)
        self.conv1 = nn.EqualizedConv2d(in_channels, out_channels, 3, down=True, leak=True, rngs=rngs)
        self.skip = nn.EqualizedConv2d(in_channels, out_channels, 1, bias=False, down=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v o"]:
        return (self.conv1(self.conv0(x)) + self.skip(x)) / math.sqrt(2)


class Epilogue(nn.Module):
    """Standard deviation over the batch, a convolution and two layers: (B, 4, 4, C) -> (B, 1)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.mbstd = nn.MinibatchStd()
        self.conv = nn.EqualizedConv2d(channels + 1, channels, 3, leak=True, rngs=rngs)
        self.flatten = nn.Flatten()
        self.fc = nn.EqualizedLinear(channels * 16, channels, leak=True, rngs=rngs)
        self.out = nn.EqualizedLinear(channels, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b 4 4 c"]) -> Float[Array, "b 1"]:
        return self.out(self.fc(self.flatten(self.conv(self.mbstd(x)))))
