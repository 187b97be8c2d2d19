"""Layers of generative models: reshaping to images, spectral norm, upsampling, pixel attention, timesteps."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from jaxarch.errors import UsageError
from jaxarch.nn import init
from jaxarch.nn.conv import check_channels
from jaxarch.nn.kernels.convolution import convolve
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Buffer, Module, Perm, from_torch_layout, optional
from jaxarch.nn.norm import GroupNorm


class Noise(Module):
    """Standard normal noise of the shape and dtype of an array, from a stream of its own."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.rngs = rngs.noise.fork()

    def __call__(self, like: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.random.normal(self.rngs(), like.shape, like.dtype)


class ToImage(Module):
    """Rows as images, in torch's order: (B, channels * height * width) -> (B, height, width, channels)."""

    def __init__(self, channels: int, height: int, width: int):
        self.channels, self.height, self.width = channels, height, width

    def __call__(self, x: Float[Array, "b n"]) -> Float[Array, "b h w c"]:
        return jnp.moveaxis(x.reshape(-1, self.channels, self.height, self.width), 1, -1)


class _Spectral(Module):
    """The base class of layers whose weight is divided by its largest singular value."""

    def _set(self, shape: tuple[int, ...], bias: bool, eps: float, rngs: nnx.Rngs) -> None:
        weight = init.torch_default(rngs.params(), shape)
        self.eps, self.use_running_average = eps, False
        self.bias = optional(
            init.uniform(1 / math.sqrt(math.prod(shape[1:])))(rngs.params(), shape[:1]) if bias else None
        )
        self.weight_orig = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight_orig"]))
        sizes = (shape[0], math.prod(shape[1:]))
        u, v = (normalize(init.normal(1.0)(rngs.params(), (n,)), eps) for n in sizes)
        self.weight_u = Buffer(u)
        self.weight_v = Buffer(v)

    def _weight(self) -> Float[Array, "..."]:
        """The weight of norm 1; in train mode after one more step of power iteration."""
        weight, perm = self.weight_orig[...], self.LAYOUT["weight_orig"] or ()
        # The vectors belong to the weight in torch's layout.
        torch_weight = jnp.transpose(weight, [perm.index(i) for i in range(len(perm))])
        matrix = torch_weight.reshape(torch_weight.shape[0], -1)
        if not self.use_running_average:
            fixed = jax.lax.stop_gradient(matrix)
            v = normalize(fixed.T @ self.weight_u[...], self.eps)
            self.weight_v[...] = v
            self.weight_u[...] = normalize(fixed @ v, self.eps)
        return weight / (self.weight_u[...] @ (matrix @ self.weight_v[...]))


class SpectralConv2d(_Spectral):
    """Conv2d whose weight is divided by its largest singular value (Miyato et al. 2018, arXiv:1802.05957).

    (B, H, W, C) -> (B, H', W', C'). Keys are those of torch.nn.utils.spectral_norm, `weight_orig weight_u
    weight_v`. In train mode each call makes one step of power iteration on the two vectors.

    Raises:
        DataError: in the call, another number of channels.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight_orig": (2, 3, 1, 0)}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        eps: float = 1e-12,
        *,
        rngs: nnx.Rngs,
    ):
        self.in_channels, self.stride, self.padding = in_channels, stride, padding
        self._set((out_channels, in_channels, kernel_size, kernel_size), bias, eps, rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b u v o"]:
        check_channels(x, self.in_channels)
        pads = ((self.padding, self.padding),) * 2
        y = convolve(x, self._weight(), (self.stride,) * 2, pads)
        return y if self.bias is None else y + self.bias[...]


class SpectralLinear(_Spectral):
    """Linear under spectral norm: (..., in_features) -> (..., out_features). See `SpectralConv2d`."""

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight_orig": (1, 0)}

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, eps: float = 1e-12, *, rngs: nnx.Rngs
    ):
        self._set((out_features, in_features), bias, eps, rngs)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = x @ self._weight()
        return y if self.bias is None else y + self.bias[...]


class PixelAttention(Module):
    """Self-attention among the pixels of an image, with a residual: (B, H, W, C) -> the same.

    Names of the diffusers library: `group_norm to_q to_k to_v to_out.0`.

    Raises:
        UsageError: heads that do not divide the channels.
    """

    def __init__(
        self, channels: int, heads: int = 1, norm_groups: int = 32, eps: float = 1e-5, *, rngs: nnx.Rngs
    ):
        if channels % heads:
            raise UsageError(f"heads {heads} does not divide channels {channels}")
        self.heads = heads
        self.group_norm = GroupNorm(norm_groups, channels, eps, rngs=rngs)
        self.to_q = Linear(channels, channels, rngs=rngs)
        self.to_k = Linear(channels, channels, rngs=rngs)
        self.to_v = Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        rows = self.group_norm(x).reshape(b, h * w, c)
        q, k, v = (f(rows).reshape(b, h * w, self.heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(scores.astype(accumulation_dtype(x.dtype)), -1).astype(x.dtype)
        y = self.to_out[0](jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, h * w, c))
        return x + y.reshape(x.shape)


def normalize(x: Float[Array, " n"], eps: float) -> Float[Array, " n"]:
    """x / max(norm of x, eps)."""
    return x / jnp.maximum(jnp.linalg.norm(x), eps)


def upsample_nearest(x: Float[Array, "b h w c"], like: Float[Array, "b u v d"]) -> Float[Array, "b u v c"]:
    """Nearest-neighbour upsampling by 2, cropped to the size of `like`, which is at most twice that of x."""
    return x.repeat(2, 1).repeat(2, 2)[:, : like.shape[1], : like.shape[2]]


def join_channels(*images: Float[Array, "b h w _"]) -> Float[Array, "b h w c"]:
    """Images of one size with their channels joined: (B, H, W, C1), ... -> (B, H, W, C1 + ...)."""
    return jnp.concatenate(images, -1)


def add_to_channels(x: Float[Array, "b h w c"], vector: Float[Array, "b c"]) -> Float[Array, "b h w c"]:
    """x (B, H, W, C) with the vector (B, C) added at every pixel."""
    return x + vector[:, None, None, :]


def timestep_embedding(t: Num[Array, " b"], dim: int, dtype: DTypeLike) -> Float[Array, "b d"]:
    """(cos, sin) of t at dim / 2 frequencies from 1 to nearly 1 / 10000: (B,) -> (B, dim); dim is even.

    Ho et al. 2020, arXiv:2006.11239, in the order of the public checkpoints.
    """
    half, angle_dtype = dim // 2, accumulation_dtype(dtype)
    frequencies = jnp.asarray(np.exp(-math.log(10000) * np.arange(half) / half), angle_dtype)
    angle = t[:, None].astype(angle_dtype) * frequencies
    return jnp.concatenate((jnp.cos(angle), jnp.sin(angle)), -1).astype(dtype)
