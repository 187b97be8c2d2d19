"""Generator of StyleGAN2, small. Karras et al. 2019, arXiv:1812.04948, and 2020, arXiv:1912.04958.

Names of the authors' code, but for `const.weight`. Noise is an argument, and up-sampling blurs before the
convolution instead of after it, which differs at the border only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchref import nn


class StyleGANGenerator(nn.Module):
    """z (B, z_dim), noise (B, n) -> images (B, channels, image_size, image_size).

    noise is that of all layers, concatenated: n is the sum of the squares of their sizes, 4, 8, 8, 16, 16,
    and so on, and for image_size 16 it is 656. `truncation` below 1 pulls w towards its mean `w_avg`, which
    follows w in train mode. `channels_at` are the channels at 4x4, 8x8, ...: they set the image size. Noise
    of another length is a ValueError.
    """

    def __init__(
        self,
        z_dim: int = 512,
        w_dim: int = 512,
        channels: int = 3,
        channels_at: Sequence[int] = (512, 512, 512, 256, 128),
        mapping_layers: int = 8,
        w_avg_beta: float = 0.998,
    ):
        super().__init__()
        self.mapping = Mapping(z_dim, w_dim, mapping_layers, w_avg_beta)
        self.synthesis = Synthesis(w_dim, channels, channels_at)

    def forward(self, z: Tensor, noise: Tensor, truncation: float = 1.0) -> Tensor:
        return self.synthesis(self.mapping(z, truncation), noise)


class Mapping(nn.Module):
    """z (B, z_dim) -> w (B, w_dim), by layers that learn a hundred times slower."""

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, layers: int, w_avg_beta: float):
        super().__init__()
        self.layers, self.w_avg_beta = layers, w_avg_beta
        for i in range(layers):
            width = w_dim if i else z_dim
            setattr(self, f"fc{i}", nn.EqualizedLinear(width, w_dim, lr_multiplier=0.01, leak=True))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        w = nn.normalize_second_moment(z)
        for i in range(self.layers):
            w = getattr(self, f"fc{i}")(w)
        if self.training:
            mean = w.detach().mean(0)
            self.w_avg.copy_(mean + self.w_avg_beta * (self.w_avg - mean))
        return w if truncation == 1 else self.w_avg + truncation * (w - self.w_avg)


class Synthesis(nn.Module):
    """w (B, w_dim), noise (B, n) -> images: a learned 4x4 map, doubled by each block."""

    def __init__(self, w_dim: int, channels: int, channels_at: Sequence[int]):
        super().__init__()
        self.sizes = tuple(4 * 2**i for i in range(len(channels_at)))
        self.b4 = Block(0, channels_at[0], w_dim, channels, 4)
        for i, size in enumerate(self.sizes[1:]):
            block = Block(channels_at[i], channels_at[i + 1], w_dim, channels, size)
            setattr(self, f"b{size}", block)

    def forward(self, w: Tensor, noise: Tensor) -> Tensor:
        check_noise(noise.shape[1], self.sizes)
        x, image = self.b4(None, None, w, noise[:, :16])
        noise = noise[:, 16:]
        for size in self.sizes[1:]:
            count = 2 * size**2
            x, image = getattr(self, f"b{size}")(x, image, w, noise[:, :count])
            noise = noise[:, count:]
        return image


class Block(nn.Module):
    """Two layers, the first of which doubles the size, and what they add to the image; at 4x4 one layer."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, channels: int, size: int):
        super().__init__()
        self.size = size
        if size == 4:
            self.const: nn.Module = nn.ConstantMap(out_channels, size)
        else:
            self.conv0: nn.Module = nn.ModulatedConv2d(in_channels, out_channels, w_dim, up=True)
        self.conv1 = nn.ModulatedConv2d(out_channels, out_channels, w_dim)
        self.torgb = nn.ModulatedConv2d(out_channels, channels, w_dim, 1, demodulate=False)

    def forward(
        self, x: Tensor | None, image: Tensor | None, w: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        noises = noise.view(len(w), -1, self.size, self.size)
        x = self.const(len(w)) if x is None else self.conv0(x, w, noises[:, 0])
        x = self.conv1(x, w, noises[:, -1])
        rgb = self.torgb(x, w)
        return x, rgb if image is None else nn.blur_upsample(image) + rgb


def check_noise(count: int, sizes: tuple[int, ...]) -> None:
    """Refuse noise of another length than the layers need."""
    needed = sum((1 if s == 4 else 2) * s**2 for s in sizes)
    if count != needed:
        raise ValueError(f"noise has {count} numbers for an image, the layers need {needed}")
