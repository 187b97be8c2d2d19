"""U-Net that predicts noise. Ho et al. 2020, arXiv:2006.11239; names and layout of the diffusers library.

Down-sampling rounds odd sizes up and up-sampling cuts to the size of the skip, so that images of any size fit.
Class conditioning has one class more, the null class of classifier-free guidance (Ho and Salimans 2022,
arXiv:2207.12598).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from jaxarch import nn
from jaxarch.errors import DataError, UsageError


class DiffusionUNet(nn.Module):
    """x (B, H, W, channels), t (B,), labels (B,) -> (B, H, W, channels).

    Level i has base_channels * multipliers[i] channels at 1 / 2**i of the size, `blocks` residual blocks on the
    way down and one more on the way up; levels in `attention_levels`, and the middle, have attention.
    `labels` are in [0, num_classes]; num_classes itself, and None, mean no class.

    Raises:
        UsageError: an unknown level.
        DataError: in the call, labels for a model without classes.
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
        *,
        rngs: nnx.Rngs,
    ):
        check_levels(attention_levels, len(multipliers))
        self.base_channels, self.num_classes = base_channels, num_classes
        time = base_channels * 4
        widths = [base_channels * m for m in multipliers]
        last = len(widths) - 1
        self.time_embedding = TimeEmbedding(base_channels, time, rngs=rngs)
        self.class_embedding = (
            nn.Embedding(num_classes + 1, time, rngs=rngs) if num_classes else nnx.data(None)
        )
        self.conv_in = nn.Conv2d(channels, base_channels, 3, 1, 1, rngs=rngs)
        common = (time, dropout, norm_groups)
        skips, width, downs, ups = [base_channels], base_channels, [], []
        for i, out in enumerate(widths):
            inner = [width] + [out] * (blocks - 1)
            attends = heads if i in attention_levels else 0
            downs.append(DownBlock(inner, out, attends, i < last, *common, rngs=rngs))
            skips += [out] * (blocks + (i < last))
            width = out
        self.down_blocks = nn.ModuleList(downs)
        self.mid_block = MidBlock(width, heads, *common, rngs=rngs)
        for i, out in reversed(list(enumerate(widths))):
            inner = [(width if j == 0 else out) + skips.pop() for j in range(blocks + 1)]
            attends = heads if i in attention_levels else 0
            ups.append(UpBlock(inner, out, attends, i > 0, *common, rngs=rngs))
            width = out
        self.up_blocks = nn.ModuleList(ups)
        self.conv_norm_out = nn.GroupNorm(norm_groups, width, rngs=rngs)
        self.conv_out = nn.Conv2d(width, channels, 3, 1, 1, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], t: Num[Array, " b"], labels: Int[Array, " b"] | None = None
    ) -> Float[Array, "b h w c"]:
        time = self.time_embedding(nn.timestep_embedding(t, self.base_channels, x.dtype))
        if self.class_embedding is not None:
            none = jnp.full(t.shape, self.num_classes)
            time = time + self.class_embedding(none if labels is None else labels)
        elif labels is not None:
            raise DataError("labels need a model with num_classes")
        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, more = down(x, time)
            skips += more
        x = self.mid_block(x, time)
        for up in self.up_blocks:
            x = up(x, time, skips)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class TimeEmbedding(nn.Module):
    """(B, D) -> (B, time): two layers over the sinusoids of t."""

    def __init__(self, dim: int, time: int, *, rngs: nnx.Rngs):
        self.linear_1 = nn.Linear(dim, time, rngs=rngs)
        self.linear_2 = nn.Linear(time, time, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b t"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class ResnetBlock(nn.Module):
    """Two convolutions with group norm, the time added between them, and a shortcut: (B, H, W, C), (B, T)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time: int,
        dropout: float,
        norm_groups: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, rngs=rngs)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, 1, 1, rngs=rngs)
        self.time_emb_proj = nn.Linear(time, out_channels, rngs=rngs)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, rngs=rngs)
        differ = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1, rngs=rngs) if differ else nnx.data(None)

    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"]) -> Float[Array, "b h w o"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = nn.add_to_channels(y, self.time_emb_proj(jax.nn.silu(time)))
        y = self.conv2(self.dropout(jax.nn.silu(self.norm2(y))))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Resampler(nn.Module):
    """A 3x3 convolution with a stride: (B, H, W, C) -> the same, or half of it rounded up."""

    def __init__(self, channels: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v c"]:
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
        *,
        rngs: nnx.Rngs,
    ):
        self.resnets, self.attentions = level(
            in_channels, out_channels, heads, time, dropout, norm_groups, rngs=rngs
        )
        self.downsamplers = nn.ModuleList([Resampler(out_channels, 2, rngs=rngs)] if down else [])

    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"]) -> tuple[Array, list[Array]]:
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
    """Residual block, attention, residual block: (B, H, W, C), (B, T) -> (B, H, W, C)."""

    def __init__(
        self, channels: int, heads: int, time: int, dropout: float, norm_groups: int, *, rngs: nnx.Rngs
    ):
        common = (time, dropout, norm_groups)
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, *common, rngs=rngs) for _ in range(2)])
        self.attentions = nn.ModuleList([nn.PixelAttention(channels, heads, norm_groups, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"]) -> Float[Array, "b h w o"]:
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
        *,
        rngs: nnx.Rngs,
    ):
        self.resnets, self.attentions = level(
            in_channels, out_channels, heads, time, dropout, norm_groups, rngs=rngs
        )
        self.upsamplers = nn.ModuleList([Resampler(out_channels, 1, rngs=rngs)] if up else [])

    def __call__(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b t"], skips: list[Array]
    ) -> Float[Array, "b u v o"]:
        for i, resnet in enumerate(self.resnets):
            x = resnet(nn.join_channels(x, skips.pop()), time)
            if len(self.attentions):
                x = self.attentions[i](x)
        for upsampler in self.upsamplers:
            x = upsampler(nn.upsample_nearest(x, skips[-1]))
        return x


def level(
    in_channels: Sequence[int],
    out_channels: int,
    heads: int,
    time: int,
    dropout: float,
    norm_groups: int,
    *,
    rngs: nnx.Rngs,
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The residual blocks of a level, and an attention for each if it has heads."""
    resnets = [ResnetBlock(i, out_channels, time, dropout, norm_groups, rngs=rngs) for i in in_channels]
    count = len(in_channels) if heads else 0
    attentions = [nn.PixelAttention(out_channels, heads, norm_groups, rngs=rngs) for _ in range(count)]
    return nn.ModuleList(resnets), nn.ModuleList(attentions)


def check_levels(attention_levels: Sequence[int], levels: int) -> None:
    """Refuse attention at a level that does not exist."""
    for i in attention_levels:
        if not 0 <= i < levels:
            raise UsageError(f"attention_levels has {i}: the model has levels 0 to {levels - 1}")
