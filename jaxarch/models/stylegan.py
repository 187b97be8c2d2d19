"""Generator of StyleGAN2, small. Karras et al. 2019, arXiv:1812.04948, and 2020, arXiv:1912.04958.

Names of the authors' code, but for `const.weight`. Noise is an argument, and up-sampling blurs before the
convolution instead of after it, which differs at the border only.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import DataError


class StyleGANGenerator(nn.Module):
    """z (B, z_dim), noise (B, n) -> images (B, image_size, image_size, channels).

    noise is that of all layers, concatenated: n is the sum of the squares of their sizes, 4, 8, 8, 16, 16,
    and so on, and for image_size 16 it is 656. `truncation` below 1 pulls w towards its mean `w_avg`, which
    follows w in train mode. `channels_at` are the channels at 4x4, 8x8, ...: they set the image size.

    Raises:
        DataError: in the call, noise of another length.
    """

    def __init__(
        self,
        z_dim: int = 512,
        w_dim: int = 512,
        channels: int = 3,
        channels_at: Sequence[int] = (512, 512, 512, 256, 128),
        mapping_layers: int = 8,
        w_avg_beta: float = 0.998,
        *,
        rngs: nnx.Rngs,
    ):
        self.mapping = Mapping(z_dim, w_dim, mapping_layers, w_avg_beta, rngs=rngs)
        self.synthesis = Synthesis(w_dim, channels, channels_at, rngs=rngs)

    def __call__(
        self, z: Float[Array, "b z"], noise: Float[Array, "b n"], truncation: float = 1.0
    ) -> Float[Array, "b h w c"]:
        return self.synthesis(self.mapping(z, truncation), noise)


class Mapping(nn.Module):
    """z (B, z_dim) -> w (B, w_dim), by layers that learn a hundred times slower."""

    def __init__(self, z_dim: int, w_dim: int, layers: int, w_avg_beta: float, *, rngs: nnx.Rngs):
        self.layers, self.w_avg_beta = layers, w_avg_beta
        for i in range(layers):
            width = w_dim if i else z_dim
            setattr(
                self, f"fc{i}", nn.EqualizedLinear(width, w_dim, lr_multiplier=0.01, leak=True, rngs=rngs)
            )
        self.w_avg = nn.Buffer(jnp.zeros(w_dim, jnp.result_type(float)))
        self.use_running_average = False

    def __call__(self, z: Float[Array, "b z"], truncation: float = 1.0) -> Float[Array, "b style"]:
        w = nn.normalize_second_moment(z)
        for i in range(self.layers):
            w = getattr(self, f"fc{i}")(w)
        if not self.use_running_average:
            mean = jax.lax.stop_gradient(w).mean(0)
            self.w_avg[...] = mean + self.w_avg_beta * (self.w_avg[...] - mean)
        return w if truncation == 1 else self.w_avg[...] + truncation * (w - self.w_avg[...])


class Synthesis(nn.Module):
    """w (B, w_dim), noise (B, n) -> images: a learned 4x4 map, doubled by each block."""

    def __init__(self, w_dim: int, channels: int, channels_at: Sequence[int], *, rngs: nnx.Rngs):
        self.sizes = tuple(4 * 2**i for i in range(len(channels_at)))
        self.b4 = Block(0, channels_at[0], w_dim, channels, 4, rngs=rngs)
        for i, size in enumerate(self.sizes[1:]):
            block = Block(channels_at[i], channels_at[i + 1], w_dim, channels, size, rngs=rngs)
            setattr(self, f"b{size}", block)

    def __call__(self, w: Float[Array, "b style"], noise: Float[Array, "b n"]) -> Float[Array, "b h w c"]:
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

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, channels: int, size: int, *, rngs: nnx.Rngs
    ):
        self.size = size
        if size == 4:
            self.const = nn.ConstantMap(out_channels, size, rngs=rngs)
        else:
            self.conv0 = nn.ModulatedConv2d(in_channels, out_channels, w_dim, up=True, rngs=rngs)
        self.conv1 = nn.ModulatedConv2d(out_channels, out_channels, w_dim, rngs=rngs)
        self.torgb = nn.ModulatedConv2d(out_channels, channels, w_dim, 1, demodulate=False, rngs=rngs)

    def __call__(
        self, x: Array | None, image: Array | None, w: Float[Array, "b d"], noise: Float[Array, "b n"]
    ) -> tuple[Float[Array, "b h w f"], Float[Array, "b h w c"]]:
        noises = noise.reshape(len(w), -1, self.size, self.size)
        x = self.const(len(w)) if x is None else self.conv0(x, w, noises[:, 0])
        x = self.conv1(x, w, noises[:, -1])
        rgb = self.torgb(x, w)
        return x, rgb if image is None else nn.blur_upsample(image) + rgb


def check_noise(count: int, sizes: tuple[int, ...]) -> None:
    """Refuse noise of another length than the layers need."""
    needed = sum((1 if s == 4 else 2) * s**2 for s in sizes)
    if count != needed:
        raise DataError(f"noise has {count} numbers for an image, the layers need {needed}")
