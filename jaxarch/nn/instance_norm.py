"""Instance normalisation: the statistics of each example and channel by itself."""

import math
import warnings
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.conv import check_channels
from jaxarch.nn.init import float_dtype
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.module import Module, optional
from jaxarch.nn.norm import apply_affine
from jaxarch.nn.unbatched import unbatched


class _InstanceNorm(Module):
    """torch's InstanceNorm over the spatial axes (Ulyanov et al. 2016, arXiv:1607.08022).

    Running statistics, if tracked, are the means over the batch of each example's mean and unbiased variance. As in
    torch, `num_batches_tracked` is not counted and momentum None leaves the running statistics as they are.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.use_running_average = False
        self.weight = optional(jnp.ones(num_features, float_dtype()) if affine else None)
        self.bias = optional(jnp.zeros(num_features, float_dtype()) if affine and bias else None)
        if track_running_stats:
            self.running_mean = nnx.BatchStat(jnp.zeros(num_features, float_dtype()))
            self.running_var = nnx.BatchStat(jnp.ones(num_features, float_dtype()))
            self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.result_type(int)))

    @unbatched(lambda layer: layer.rank + 1)
    def __call__(self, input: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        self._check(input)
        upcast = input.astype(accumulation_dtype(input.dtype))
        axes = tuple(range(1, input.ndim - 1))
        if self.track_running_stats and self.use_running_average:
            mean, var = (s[...].astype(upcast.dtype) for s in (self.running_mean, self.running_var))
        else:
            n = math.prod(input.shape[1:-1])
            if n == 1:
                raise DataError(
                    f"instance norm needs more than 1 position per example, the input is {input.shape}"
                )
            mean = upcast.mean(axes, keepdims=True)
            var = jnp.square(upcast - mean).mean(axes, keepdims=True)
            if self.track_running_stats:
                self._remember(mean, var * (n / (n - 1)))
        y = (upcast - mean) * jax.lax.rsqrt(var + self.eps)
        return apply_affine(y.astype(input.dtype), self.weight, self.bias)

    def _check(self, x: Float[Array, "b *space c"]) -> None:
        if self.affine or self.track_running_stats:
            check_channels(x, self.num_features)
        elif x.shape[-1] != self.num_features:
            warnings.warn(
                f"x of shape {x.shape} has not num_features={self.num_features} channels", stacklevel=4
            )

    def _remember(self, mean: Float[Array, "b *ones c"], unbiased: Float[Array, "b *ones c"]) -> None:
        k = self.momentum or 0.0
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            average = jax.lax.stop_gradient(new.reshape(-1, self.num_features).mean(0))
            running[...] = (1 - k) * running[...] + k * average.astype(running.dtype)


class InstanceNorm1d(_InstanceNorm):
    """(B, T, C) or (T, C) -> the same.

    Raises:
        DataError: in the call, another number of axes, or of channels where the layer has arrays of them; one position
            per example where its own statistics are needed.
    """

    rank = 1


class InstanceNorm2d(_InstanceNorm):
    """(B, H, W, C) or (H, W, C) -> the same. Errors: `InstanceNorm1d`."""

    rank = 2


class InstanceNorm3d(_InstanceNorm):
    """(B, D, H, W, C) or (D, H, W, C) -> the same. Errors: `InstanceNorm1d`."""

    rank = 3
