"""Channels moved into pixels, back, and among each other: images (..., H, W, C) with torch's order of channels."""

from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.module import Module


class PixelShuffle(Module):
    """torch.nn.PixelShuffle (Shi et al. 2016, arXiv:1609.05158). (..., H, W, C * r * r) -> (..., H * r, W * r, C).

    Raises:
        UsageError: a factor below 1.
        DataError: in the call, channels that r * r does not divide, or fewer than three axes.
    """

    def __init__(self, upscale_factor: int):
        self.upscale_factor = _positive("upscale_factor", upscale_factor)

    def __call__(self, input: Float[Array, "*batch h w c"]) -> Float[Array, "*batch u v d"]:
        r, (*batch, h, w, c) = self.upscale_factor, _image(input)
        if c % (r * r):
            raise DataError(f"{c} channels cannot be shuffled into pixels: {r * r} must divide them")
        x = input.reshape(-1, h, w, c // (r * r), r, r)
        return x.transpose(0, 1, 4, 2, 5, 3).reshape(*batch, h * r, w * r, c // (r * r))


class PixelUnshuffle(Module):
    """torch.nn.PixelUnshuffle, the inverse of `PixelShuffle`. (..., H * r, W * r, C) -> (..., H, W, C * r * r).

    Raises:
        UsageError: a factor below 1.
        DataError: in the call, sizes that r does not divide, or fewer than three axes.
    """

    def __init__(self, downscale_factor: int):
        self.downscale_factor = _positive("downscale_factor", downscale_factor)

    def __call__(self, input: Float[Array, "*batch h w c"]) -> Float[Array, "*batch u v d"]:
        r, (*batch, h, w, c) = self.downscale_factor, _image(input)
        if h % r or w % r:
            raise DataError(f"an image of {h} x {w} pixels cannot be unshuffled: {r} must divide both")
        x = input.reshape(-1, h // r, r, w // r, r, c)
        return x.transpose(0, 1, 3, 5, 2, 4).reshape(*batch, h // r, w // r, c * r * r)


class ChannelShuffle(Module):
    """torch.nn.ChannelShuffle (Zhang et al. 2017, arXiv:1707.01083): one channel of each group in turn.

    (B, *space, C) -> the same.

    Raises:
        UsageError: groups below 1.
        DataError: in the call, channels that the groups do not divide.
    """

    def __init__(self, groups: int):
        self.groups = _positive("groups", groups)

    def __call__(self, input: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        *shape, c = input.shape
        if c % self.groups:
            raise DataError(f"groups {self.groups} do not divide {c} channels")
        return input.reshape(*shape, self.groups, -1).swapaxes(-1, -2).reshape(input.shape)


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise UsageError(f"{name} must be at least 1, not {value}")
    return value


def _image(x: Float[Array, "..."]) -> tuple[int, ...]:
    if x.ndim < 3:
        raise DataError(f"an image needs axes (..., H, W, C), not shape {x.shape}")
    return x.shape
