"""Padding, and elements of images moved between pixels and channels, under torch.nn.functional's names."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import fold as folds
from jaxarch.nn import padding, shuffle
from jaxarch.nn.conv import Size

Values = Float[Array, "..."]


def pad(
    input: Shaped[Array, "..."],
    pad: Sequence[int],
    mode: str = "constant",
    value: float | int | None = None,
    *,
    channels_last: bool = True,
) -> Shaped[Array, "..."]:
    """torch.nn.functional.pad: pairs (before, after) of axes, in torch's order, which begins with its last axis.

    torch's last axes are the spatial ones: of an image (B, H, W, C) here the pairs are those of W, H, C and B.
    `channels_last=False`, and an array of one or two axes, has no channels to move (tokens, masks, features): the
    pairs then begin with the last axis. "reflect", "replicate" and "circular" pad the spatial axes alone, and take
    an image without a batch axis, too. Negative numbers cut off.

    Raises:
        UsageError: an odd number of numbers, unknown mode, a value with another mode than "constant".
        DataError: more pairs than axes, an axis too short.
    """
    if len(pad) % 2:
        raise UsageError(f"pad {tuple(pad)} must be pairs: its length is odd")
    pairs = tuple(zip(pad[::2], pad[1::2], strict=True))
    if mode != "constant":
        if value is not None:
            raise UsageError(f"value is for mode 'constant', not {mode!r}: leave it out")
        return _of_space(input, pairs, mode, channels_last)
    axes = list(range(input.ndim))
    if channels_last and input.ndim > 2:
        axes = [0, input.ndim - 1, *range(1, input.ndim - 1)]  # torch's (B, C, *space)
    if len(pairs) > input.ndim:
        raise DataError(f"pad {tuple(pad)} has more pairs than the input of shape {input.shape} has axes")
    widths = [(0, 0, 0)] * input.ndim
    for axis, (before, after) in zip(reversed(axes), pairs, strict=False):
        widths[axis] = (before, after, 0)
    if any(n + a + b < 0 for n, (a, b, _) in zip(input.shape, widths, strict=True)):
        raise DataError(f"pad {tuple(pad)} cuts off more than the input of shape {input.shape} has")
    return jax.lax.pad(input, jnp.asarray(value or 0, input.dtype), widths)


def _of_space(
    input: Shaped[Array, "..."], pairs: tuple[tuple[int, int], ...], mode: str, channels_last: bool
) -> Shaped[Array, "..."]:
    rank = len(pairs)
    if rank not in (1, 2, 3) or input.ndim not in (rank + 1, rank + 2):
        raise DataError(
            f"{rank} pairs for mode {mode!r} need {rank} spatial axes, the input is {input.shape}"
        )
    x = input if channels_last else jnp.moveaxis(input, input.ndim - rank - 1, -1)
    batched = x if input.ndim == rank + 2 else x[None]
    y = padding.pad(batched, pairs[::-1], mode)
    y = y if input.ndim == rank + 2 else y[0]
    return y if channels_last else jnp.moveaxis(y, -1, input.ndim - rank - 1)


def pixel_shuffle(input: Values, upscale_factor: int) -> Values:
    """`nn.PixelShuffle`: (..., H, W, C * r * r) -> (..., H * r, W * r, C)."""
    return shuffle.PixelShuffle(upscale_factor)(input)


def pixel_unshuffle(input: Values, downscale_factor: int) -> Values:
    """`nn.PixelUnshuffle`: (..., H * r, W * r, C) -> (..., H, W, C * r * r)."""
    return shuffle.PixelUnshuffle(downscale_factor)(input)


def channel_shuffle(input: Values, groups: int) -> Values:
    """`nn.ChannelShuffle` of (B, *space, C)."""
    return shuffle.ChannelShuffle(groups)(input)


def native_channel_shuffle(input: Values, groups: int) -> Values:
    """`channel_shuffle`, under the name of torch's CPU kernel."""
    return channel_shuffle(input, groups)


def unfold(
    input: Values, kernel_size: Size, dilation: Size = 1, padding: Size = 0, stride: Size = 1
) -> Values:
    """`nn.Unfold`: (B, H, W, C) -> (B, L, C * K); a row is in torch's order, the channel before the pixel."""
    return folds.Unfold(kernel_size, dilation, padding, stride)(input)


def fold(
    input: Values,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Size = 0,
    stride: Size = 1,
) -> Values:
    """`nn.Fold`: (B, L, C * K) -> (B, *output_size, C)."""
    return folds.Fold(output_size, kernel_size, dilation, padding, stride)(input)
