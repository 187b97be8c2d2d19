"""Normalisation with torch's statistics: biased variance to normalise, unbiased running variance."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.conv import check_channels
from jaxarch.nn.init import float_dtype
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.module import Module, optional


class BatchNorm(Module):
    """torch's BatchNorm over every axis but the last (Ioffe and Szegedy 2015).

    (..., C) -> (..., C). In train mode running = (1 - momentum) * running + momentum * batch, with the
    unbiased batch variance; `momentum=None` is torch's cumulative average. Statistics stay float32 or wider.
    They are the whole batch's, on however many devices it is sharded; see `set_batch_groups`.

    Raises:
        UsageError: eps is not positive.
        DataError: in the call, another number of axes or channels; in train mode, one value per channel.
    """

    axes: ClassVar[tuple[int, ...]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        if eps <= 0:
            raise UsageError(f"eps must be positive, not {eps}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.use_running_average, self.frozen, self.groups = False, False, 1
        self.weight = optional(jnp.ones(num_features, float_dtype()) if affine else None)
        self.bias = optional(jnp.zeros(num_features, float_dtype()) if affine and bias else None)
        self.track_running_stats = track_running_stats
        if track_running_stats:
            self.running_mean = nnx.BatchStat(jnp.zeros(num_features, float_dtype()))
            self.running_var = nnx.BatchStat(jnp.ones(num_features, float_dtype()))
            self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.result_type(int)))

    def freeze(self, frozen: bool = True) -> None:
        """Normalise by the running statistics and do not update them, in train mode too, as torch's `bn.eval()`."""
        self.frozen = frozen

    def __call__(self, input: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        if input.ndim not in self.axes:
            raise DataError(
                f"{type(self).__name__} takes {self.axes} axes, not an input of shape {input.shape}"
            )
        check_channels(input, self.num_features)
        upcast = input.astype(accumulation_dtype(input.dtype))
        if self.track_running_stats and (self.use_running_average or self.frozen):
            mean, var = (s[...].astype(upcast.dtype) for s in (self.running_mean, self.running_var))
        else:
            upcast = self._grouped(upcast)
            axes = tuple(range(int(self.groups > 1), upcast.ndim - 1))
            n = math.prod(upcast.shape[i] for i in axes)
            if n == 1:
                raise DataError(
                    f"batch norm in train mode needs more than 1 value per channel, the input is {input.shape}"
                    + (f" in {self.groups} groups" if self.groups > 1 else "")
                )
            ones, zeros = (
                jnp.ones(self.num_features, upcast.dtype),
                jnp.zeros(self.num_features, upcast.dtype),
            )
            weight = ones if self.weight is None else self.weight[...].astype(upcast.dtype)
            bias = zeros if self.bias is None else self.bias[...].astype(upcast.dtype)
            y, mean, var = _by_batch(upcast, weight, bias, axes, self.eps)
            if self.track_running_stats:
                first = [s.reshape(-1, self.num_features)[0] for s in (mean, var)]
                self._remember(first[0], first[1], n)
            return y.reshape(input.shape).astype(input.dtype)
        y = (upcast - mean) * jax.lax.rsqrt(var + self.eps)
        return apply_affine(y.astype(input.dtype), self.weight, self.bias)

    def _grouped(self, x: Array) -> Array:
        """(B, ..., C) -> (groups, B / groups, ..., C), or x where there is one group."""
        if self.groups == 1:
            return x
        if x.shape[0] % self.groups:
            raise DataError(f"a batch of {x.shape[0]} rows cannot be split into {self.groups} batch groups")
        return x.reshape(self.groups, -1, *x.shape[1:])

    def _remember(self, mean: Float[Array, " c"], var: Float[Array, " c"], n: int) -> None:
        count = self.num_batches_tracked[...] + 1
        self.num_batches_tracked[...] = count
        if not n:
            return  # an empty batch has no statistics
        k = self.momentum if self.momentum is not None else 1 / count.astype(self.running_mean.dtype)
        unbiased = var * (n / (n - 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running[...] = (1 - k) * running[...] + k * jax.lax.stop_gradient(new).astype(running.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _by_batch(
    x: Float[Array, "*batch c"],
    weight: Float[Array, " c"],
    bias: Float[Array, " c"],
    axes: tuple[int, ...],
    eps: float,
) -> tuple[Array, Array, Array]:
    """x normalised over axes, scaled and shifted; its mean and biased variance there.

    The rule below is the exact derivative, in fewer passes: its transpose reuses the sums over the batch of the
    weight's and the bias's gradients, where differentiating this body takes three more sums.
    """
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + eps) * weight + bias, mean, var


@_by_batch.defjvp
def _by_batch_jvp(axes: tuple[int, ...], eps: float, primals: Any, tangents: Any) -> Any:
    x, weight, bias = primals
    dx, dweight, dbias = tangents
    y, mean, var = _by_batch(x, weight, bias, axes, eps)
    scale = jax.lax.rsqrt(var + eps)
    normalized = (x - mean) * scale
    scaled = dx * (scale * weight)
    dy = scaled - scaled.mean(axes, keepdims=True)
    dy = dy - normalized * (normalized * scaled).mean(axes, keepdims=True)
    dvar = 2 * ((x - mean) * dx).mean(axes, keepdims=True)
    return (y, mean, var), (dy + normalized * dweight + dbias, dx.mean(axes, keepdims=True), dvar)


def set_batch_groups(model: nnx.Module, groups: int) -> None:
    """Let each batch norm of `model` take its statistics in train mode from `groups` equal groups of the batch.

    With one group per device, and a mean loss, this is training under torch's DistributedDataParallel: every
    group is normalised by itself, without communication, and the running statistics are the first group's, as
    those of rank 0 are broadcast there. 1 is the default: one group, torch's SyncBatchNorm.

    Raises:
        UsageError: groups below 1, or a model without batch norm.
    """
    if groups < 1:
        raise UsageError(f"groups must be at least 1, not {groups}")
    norms = [m for _, m in nnx.iter_graph(model) if isinstance(m, BatchNorm)]
    if not norms:
        raise UsageError(f"{type(model).__name__} has no batch norm whose groups could be set")
    for norm in norms:
        norm.groups = groups


class BatchNorm1d(BatchNorm):
    """(B, C) or (B, T, C)."""

    axes = (2, 3)


class BatchNorm2d(BatchNorm):
    """(B, H, W, C)."""

    axes = (4,)


class BatchNorm3d(BatchNorm):
    """(B, D, H, W, C)."""

    axes = (5,)


class SyncBatchNorm(BatchNorm):
    """(B, ..., C), by the statistics of the whole batch on however many devices: every batch norm here is that.

    Under a sharded jit a mean over the batch is one over all devices, so that `process_group` has nothing to say and
    must be None; `set_batch_groups` gives each device its own statistics.

    Raises:
        UsageError: a process group.
    """

    axes = (2, 3, 4, 5)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: object | None = None,
        *,
        bias: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        if process_group is not None:
            raise UsageError("SyncBatchNorm has the whole mesh's statistics: leave process_group at None")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias=bias)

    @classmethod
    def convert_sync_batchnorm(cls, module: nnx.Module, process_group: object | None = None) -> nnx.Module:
        """The module itself, each of its batch norms taking the statistics of the whole batch."""
        for _, norm in nnx.iter_graph(module):
            if isinstance(norm, BatchNorm):
                norm.groups = 1
        return module


class LayerNorm(Module):
    """torch's LayerNorm over the last axes (Ba et al. 2016, arXiv:1607.06450).

    (..., *normalized_shape) -> the same. Statistics are float32 or wider. `normalized_shape` counts this array's
    axes: whole images are (H, W, C), and so are the weight and the bias, which are stored in that order.

    Raises:
        DataError: in the call, x does not end in normalized_shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        rngs: nnx.Rngs | None = None,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight = optional(jnp.ones(shape, float_dtype()) if elementwise_affine else None)
        self.bias = optional(jnp.zeros(shape, float_dtype()) if elementwise_affine and bias else None)

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        check_ending(input, self.normalized_shape)
        y = standardize(input, tuple(range(-len(self.normalized_shape), 0)), self.eps)
        return apply_affine(y, self.weight, self.bias)


class GroupNorm(Module):
    """torch's GroupNorm, channels last (Wu and He 2018, arXiv:1803.08494). (B, ..., C) -> the same.

    Raises:
        UsageError: the groups do not divide the channels.
        DataError: in the call, another number of channels.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        if num_channels % num_groups:
            raise UsageError(f"num_groups {num_groups} does not divide num_channels {num_channels}")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = optional(jnp.ones(num_channels, float_dtype()) if affine else None)
        self.bias = optional(jnp.zeros(num_channels, float_dtype()) if affine and bias else None)

    def __call__(self, input: Float[Array, "b *space c"]) -> Float[Array, "b *space c"]:
        check_channels(input, self.num_channels)
        grouped = input.reshape(*input.shape[:-1], self.num_groups, self.num_channels // self.num_groups)
        axes = (*range(1, input.ndim - 1), input.ndim)
        return apply_affine(standardize(grouped, axes, self.eps).reshape(input.shape), self.weight, self.bias)


class RMSNorm(Module):
    """torch's RMSNorm over the last axes (Zhang and Sennrich 2019, arXiv:1910.07467).

    (..., *normalized_shape) -> the same. `normalized_shape` counts as `LayerNorm`'s. eps=None is the machine epsilon
    of the dtype that the mean is computed in, float32 or wider, as in torch.

    Raises:
        DataError: in the call, x does not end in normalized_shape.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        rngs: nnx.Rngs | None = None,
    ):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape, self.eps = shape, eps
        self.weight = optional(jnp.ones(shape, float_dtype()) if elementwise_affine else None)

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        check_ending(x, self.normalized_shape)
        upcast = x.astype(accumulation_dtype(x.dtype))
        eps = float(jnp.finfo(upcast.dtype).eps) if self.eps is None else self.eps
        axes = tuple(range(-len(self.normalized_shape), 0))
        y = upcast * jax.lax.rsqrt(jnp.square(upcast).mean(axes, keepdims=True) + eps)
        return apply_affine(y.astype(x.dtype), self.weight, None)


def check_ending(x: Float[Array, "*shape"], shape: tuple[int, ...]) -> None:
    """Raise a DataError unless the last axes of x have this shape."""
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        raise DataError(f"x of shape {x.shape} does not end in normalized_shape {shape}")


def standardize(x: Float[Array, "*shape"], axes: tuple[int, ...], eps: float) -> Float[Array, "*shape"]:
    """(x - mean) / sqrt(variance + eps) over axes, in two passes: E[x^2] - E[x]^2 would cancel."""
    upcast = x.astype(accumulation_dtype(x.dtype))
    centred = upcast - upcast.mean(axes, keepdims=True)
    var = jnp.square(centred).mean(axes, keepdims=True)
    return (centred * jax.lax.rsqrt(var + eps)).astype(x.dtype)


def apply_affine(
    y: Float[Array, "*shape"], weight: nnx.Variable | Array | None, bias: nnx.Variable | Array | None
) -> Float[Array, "*shape"]:
    """y * weight + bias, each only where the layer has it."""
    y = y if weight is None else y * weight[...].astype(y.dtype)
    return y if bias is None else y + bias[...].astype(y.dtype)
