"""Layers of generative models: reshaping to images, spectral norm, upsampling, pixel attention, timesteps."""

import math

import torch
from torch import Tensor
from torch.nn import Conv2d, GroupNorm, Linear, Module, ModuleList
from torch.nn.utils import spectral_norm


class Noise(Module):
    """Standard normal noise of the shape, dtype and device of a tensor."""

    def __init__(self):
        super().__init__()

    def forward(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class ToImage(Module):
    """Rows as images, the channel slowest: (B, channels * height * width) -> (B, channels, height, width)."""

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.channels, self.height, self.width = channels, height, width

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.channels, self.height, self.width)


class SpectralConv2d(Conv2d):
    """Conv2d whose weight is divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    (B, C, H, W) -> (B, C', H', W'). Keys are those of torch.nn.utils.spectral_norm, `weight_orig weight_u
    weight_v`. In train mode each call makes one step of power iteration on the two vectors.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        eps: float = 1e-12,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        spectral_norm(self, eps=eps)


class SpectralLinear(Linear):
    """Linear under spectral norm: (..., in_features) -> (..., out_features). See `SpectralConv2d`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-12):
        super().__init__(in_features, out_features, bias)
        spectral_norm(self, eps=eps)


class PixelAttention(Module):
    """Self-attention among the pixels of an image, with a residual: (B, C, H, W) -> the same.

    Names of the diffusers library: `group_norm to_q to_k to_v to_out.0`. Heads that do not divide the
    channels are a ValueError.
    """

    def __init__(self, channels: int, heads: int = 1, norm_groups: int = 32, eps: float = 1e-5):
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads {heads} does not divide channels {channels}")
        self.heads = heads
        self.group_norm = GroupNorm(norm_groups, channels, eps)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            f(rows).view(b, h * w, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        y = self.to_out[0]((weights @ v).transpose(1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


def upsample_nearest(x: Tensor, like: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2, cropped to the size of `like`, which is at most twice that of x."""
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : like.shape[2], : like.shape[3]]


def join_channels(*images: Tensor) -> Tensor:
    """Images of one size with their channels joined: (B, C1, H, W), ... -> (B, C1 + ..., H, W)."""
    return torch.cat(images, 1)


def add_to_channels(x: Tensor, vector: Tensor) -> Tensor:
    """x (B, C, H, W) with the vector (B, C) added at every pixel."""
    return x + vector[:, :, None, None]


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """(cos, sin) of t at dim / 2 frequencies from 1 to nearly 1 / 10000: (B,) -> (B, dim); dim is even.

    Ho et al. 2020, arXiv:2006.11239, in the order of the public checkpoints.
    """
    half = dim // 2
    angle_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=angle_dtype, device=t.device) / half)
    angle = t[:, None].to(angle_dtype) * frequencies
    return torch.cat((angle.cos(), angle.sin()), -1).to(dtype)
