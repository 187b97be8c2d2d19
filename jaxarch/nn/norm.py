"""Normalisation with torch's statistics: biased variance to normalise, unbiased variance to remember."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.nn.init import float_dtype
from jaxarch.nn.module import Module, wide_dtype


class BatchNorm(Module):
    """torch's BatchNorm over every axis but the last (Ioffe and Szegedy 2015).

    (..., C) -> (..., C). In train mode running = (1 - momentum) * running + momentum * batch, with the
    unbiased batch variance; `momentum=None` is torch's cumulative average. Statistics stay float32 or wider.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.use_running_average, self.frozen = False, False
        self.weight = nnx.Param(jnp.ones(num_features, float_dtype())) if affine else nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(num_features, float_dtype())) if affine else nnx.data(None)
        if track_running_stats:
            self.running_mean = nnx.BatchStat(jnp.zeros(num_features, float_dtype()))
            self.running_var = nnx.BatchStat(jnp.ones(num_features, float_dtype()))
            self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.result_type(int)))
        else:
            self.running_mean = self.running_var = self.num_batches_tracked = nnx.data(None)

    def freeze(self, frozen: bool = True) -> None:
        """Normalise by the running statistics, and leave them alone, in train mode too: torch's `bn.eval()`."""
        self.frozen = frozen

    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        wide = x.astype(wide_dtype(x.dtype))
        if self.running_mean is not None and (self.use_running_average or self.frozen):
            mean, var = self.running_mean[...], self.running_var[...]
        else:
            axes = tuple(range(x.ndim - 1))
            mean, var = wide.mean(axes), wide.var(axes)
            if self.running_mean is not None:
                self._remember(mean, var, x.size // x.shape[-1])
        y = (wide - mean) * jax.lax.rsqrt(var + self.eps)
        if self.weight is not None:
            y = y * self.weight[...] + self.bias[...]
        return y.astype(x.dtype)

    def _remember(self, mean: Float[Array, " c"], var: Float[Array, " c"], n: int) -> None:
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1
        if self.momentum is None:
            k = 1 / self.num_batches_tracked[...].astype(mean.dtype)
        else:
            k = self.momentum
        unbiased = var * (n / (n - 1))
        self.running_mean[...] = (1 - k) * self.running_mean[...] + k * jax.lax.stop_gradient(mean)
        self.running_var[...] = (1 - k) * self.running_var[...] + k * jax.lax.stop_gradient(unbiased)


class BatchNorm1d(BatchNorm):
    """(B, C) or (B, T, C)."""


class BatchNorm2d(BatchNorm):
    """(B, H, W, C)."""


class LayerNorm(Module):
    """torch's LayerNorm over the last axes (Ba et al. 2016, arXiv:1607.06450).

    (..., *normalized_shape) -> the same. Statistics are float32 or wider.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight = nnx.Param(jnp.ones(shape, float_dtype())) if elementwise_affine else nnx.data(None)
        has_bias = elementwise_affine and bias
        self.bias = nnx.Param(jnp.zeros(shape, float_dtype())) if has_bias else nnx.data(None)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        axes = tuple(range(-len(self.normalized_shape), 0))
        wide = x.astype(wide_dtype(x.dtype))
        mean = wide.mean(axes, keepdims=True)
        var = jnp.square(wide - mean).mean(axes, keepdims=True)
        y = ((wide - mean) * jax.lax.rsqrt(var + self.eps)).astype(x.dtype)
        y = y if self.weight is None else y * self.weight[...]
        return y if self.bias is None else y + self.bias[...]
