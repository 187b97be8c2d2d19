"""U-Net that predicts noise. Ho et al. 2020, arXiv:2006.11239; names and layout of the diffusers library.

Down-sampling rounds odd sizes up and up-sampling cuts to the size of the skip, so that images of any size fit.
Class conditioning has one class more, the null class of classifier-free guidance (Ho and Salimans 2022,
arXiv:2207.12598).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref import nn


class DiffusionUNet(nn.Module):
    """x (B, channels, H, W), t (B,), labels (B,) -> (B, channels, H, W).

    Level i has base_channels * multipliers[i] channels at 1 / 2**i of the size, `blocks` residual blocks on the
    way down and one more on the way up; levels in `attention_levels`, and the middle, have attention.
    `labels` are in [0, num_classes]; num_classes itself, and None, mean no class. An unknown level, and labels
    for a model without classes, are ValueErrors.
    """

    def __init__(
        self,
        channels: int = 3,
        base_channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1, 2),
        heads: int = 1,
        num_classes: int = 0,
        dropout: float = 0.0,
        norm_groups: int = 32,
    ):
        super().__init__()
        check_levels(attention_levels, len(multipliers))
        self.base_channels, self.num_classes = base_channels, num_classes
        time = base_channels * 4
        widths = [base_channels * m for m in multipliers]
        last = len(widths) - 1
        self.time_embedding = TimeEmbedding(base_channels, time)
        self.class_embedding = nn.Embedding(num_classes + 1, time) if num_classes else None
        self.conv_in = nn.Conv2d(channels, base_channels, 3, 1, 1)
        common = (time, dropout, norm_groups)
        skips, width, downs, ups = [base_channels], base_channels, [], []
        for i, out in enumerate(widths):
            inner = [width] + [out] * (blocks - 1)
            attends = heads if i in attention_levels else 0
            downs.append(DownBlock(inner, out, attends, i < last, *common))
            skips += [out] * (blocks + (i < last))
            width = out
        self.down_blocks = nn.ModuleList(downs)
        self.mid_block = MidBlock(width, heads, *common)
        for i, out in reversed(list(enumerate(widths))):
            inner = [(width if j == 0 else out) + skips.pop() for j in range(blocks + 1)]
            attends = heads if i in attention_levels else 0
            ups.append(UpBlock(inner, out, attends, i > 0, *common))
            width = out
        self.up_blocks = nn.ModuleList(ups)
        self.conv_norm_out = nn.GroupNorm(norm_groups, width)
        self.conv_out = nn.Conv2d(width, channels, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        time = self.time_embedding(nn.timestep_embedding(t, self.base_channels, x.dtype))
        if self.class_embedding is not None:
            none = torch.full_like(t, self.num_classes, dtype=torch.long)
            time = time + self.class_embedding(none if labels is None else labels)
        elif labels is not None:
            raise ValueError("labels need a model with num_classes")
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, more = down(x, time)
            skips += more
        x = self.mid_block(x, time)
        for up in self.up_blocks:
            x = up(x, time, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class TimeEmbedding(nn.Module):
    """(B, D) -> (B, time): two layers over the sinusoids of t."""

    def __init__(self, dim: int, time: int):
        super().__init__()
        self.linear_1 = nn.Linear(dim, time)
        self.linear_2 = nn.Linear(time, time)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """Two convolutions with group norm, the time added between them, and a shortcut: (B, C, H, W), (B, T)."""

    def __init__(self, in_channels: int, out_channels: int, time: int, dropout: float, norm_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.time_emb_proj = nn.Linear(time, out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        differ = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if differ else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = nn.add_to_channels(y, self.time_emb_proj(F.silu(time)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Resampler(nn.Module):
    """A 3x3 convolution with a stride: (B, C, H, W) -> the same, or half of it rounded up."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DownBlock(nn.Module):
    """The residual blocks of a level, and down-sampling: -> (x, every output on the way). 0 heads: no attention."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        heads: int,
        down: bool,
        time: int,
        dropout: float,
        norm_groups: int,
    ):
        super().__init__()
        self.resnets, self.attentions = level(in_channels, out_channels, heads, time, dropout, norm_groups)
        self.downsamplers = nn.ModuleList([Resampler(out_channels, 2)] if down else [])

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if len(self.attentions):
                x = self.attentions[i](x)
            outputs.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            outputs.append(x)
        return x, outputs


class MidBlock(nn.Module):
    """Residual block, attention, residual block: (B, C, H, W), (B, T) -> (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, time: int, dropout: float, norm_groups: int):
        super().__init__()
        common = (time, dropout, norm_groups)
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, *common) for _ in range(2)])
        self.attentions = nn.ModuleList([nn.PixelAttention(channels, heads, norm_groups)])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time))
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """The residual blocks of a level, each of which takes a skip connection, and up-sampling. 0 heads: no attention."""

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        heads: int,
        up: bool,
        time: int,
        dropout: float,
        norm_groups: int,
    ):
        super().__init__()
        self.resnets, self.attentions = level(in_channels, out_channels, heads, time, dropout, norm_groups)
        self.upsamplers = nn.ModuleList([Resampler(out_channels, 1)] if up else [])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(nn.join_channels(x, skips.pop()), time)
            if len(self.attentions):
                x = self.attentions[i](x)
        for upsampler in self.upsamplers:
            x = upsampler(nn.upsample_nearest(x, skips[-1]))
        return x


def level(
    in_channels: Sequence[int], out_channels: int, heads: int, time: int, dropout: float, norm_groups: int
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The residual blocks of a level, and an attention for each if it has heads."""
    resnets = [ResnetBlock(i, out_channels, time, dropout, norm_groups) for i in in_channels]
    count = len(in_channels) if heads else 0
    attentions = [nn.PixelAttention(out_channels, heads, norm_groups) for _ in range(count)]
    return nn.ModuleList(resnets), nn.ModuleList(attentions)


def check_levels(attention_levels: Sequence[int], levels: int) -> None:
    """Refuse attention at a level that does not exist."""
    for i in attention_levels:
        if not 0 <= i < levels:
            raise ValueError(f"attention_levels has {i}: the model has levels 0 to {levels - 1}")
