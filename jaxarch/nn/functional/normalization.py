"""Normalisation under torch.nn.functional's names: the layers of `jaxarch.nn` with the caller's arrays.

Channels are last. Running statistics that training changes are given as `nnx.Variable`, since arrays cannot change.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from jaxarch.nn.norm import GroupNorm, RMSNorm, SyncBatchNorm, apply_affine, check_ending, standardize
from jaxarch.nn.response_norm import LocalResponseNorm

Values = Float[Array, "..."]
Statistics = Float[Array, " c"] | nnx.Variable | None


def batch_norm(
    input: Float[Array, "b *space c"],
    running_mean: Statistics,
    running_var: Statistics,
    weight: Values | None = None,
    bias: Values | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Array, "b *space c"]:
    """`nn.BatchNorm` of (B, ..., C) by the batch in training, else by the running statistics.

    Training updates running statistics that are an `nnx.Variable`.

    Raises:
        UsageError: statistics to update that are arrays; none outside training.
        DataError: as the layer.
    """
    layer = SyncBatchNorm(input.shape[-1], eps, momentum, affine=False, track_running_stats=False)
    _track(layer, running_mean, running_var, training)
    return apply_affine(layer(input), weight, bias)


def _track(layer: Any, mean: Statistics, var: Statistics, by_input: bool) -> None:
    """Let the layer use, and in training update, these statistics."""
    if mean is None or var is None:
        if not by_input:
            raise UsageError(
                "without training the statistics are the running ones: give running_mean and var"
            )
        return
    if by_input and not (isinstance(mean, nnx.Variable) and isinstance(var, nnx.Variable)):
        raise UsageError("training updates running statistics, and arrays cannot change: give nnx.Variables")
    layer.track_running_stats, layer.use_running_average = True, not by_input
    layer.running_mean, layer.running_var = (
        v if isinstance(v, nnx.Variable) else nnx.BatchStat(v) for v in (mean, var)
    )
    layer.num_batches_tracked = nnx.BatchStat(jnp.zeros((), int))


def instance_norm(
    input: Float[Array, "*shape c"],
    running_mean: Statistics = None,
    running_var: Statistics = None,
    weight: Values | None = None,
    bias: Values | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Array, "*shape c"]:
    """`nn.InstanceNorm` of (B, ..., C) by each example, or by the running statistics.

    `use_input_stats` updates running statistics that are an `nnx.Variable`.

    Raises:
        UsageError: statistics to update that are arrays; none where they are needed.
        DataError: as the layer.
    """
    if not 3 <= input.ndim <= 5:
        raise DataError(
            f"instance_norm takes (B, ..., C) of 3 to 5 axes, not an input of shape {input.shape}"
        )
    cls = (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)[input.ndim - 3]
    layer = cls(input.shape[-1], eps, momentum)
    _track(layer, running_mean, running_var, use_input_stats)
    return apply_affine(layer(input), weight, bias)


def layer_norm(
    input: Values,
    normalized_shape: Sequence[int],
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
) -> Values:
    """`nn.LayerNorm` over the last axes, which `normalized_shape` counts as they are here: (H, W, C)."""
    shape = tuple(normalized_shape)
    check_ending(input, shape)
    return apply_affine(standardize(input, tuple(range(-len(shape), 0)), eps), weight, bias)


def rms_norm(
    input: Values, normalized_shape: Sequence[int], weight: Values | None = None, eps: float | None = None
) -> Values:
    """`nn.RMSNorm` over the last axes, which `normalized_shape` counts as they are here: (H, W, C)."""
    y = RMSNorm(tuple(normalized_shape), eps, elementwise_affine=False)(input)
    return apply_affine(y, weight, None)


def group_norm(
    input: Float[Array, "b *space c"],
    num_groups: int,
    weight: Values | None = None,
    bias: Values | None = None,
    eps: float = 1e-5,
) -> Float[Array, "b *space c"]:
    """`nn.GroupNorm` of (B, ..., C)."""
    y = GroupNorm(num_groups, input.shape[-1], eps, affine=False)(input)
    return apply_affine(y, weight, bias)


def local_response_norm(
    input: Float[Array, "b *space c"], size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float[Array, "b *space c"]:
    """`nn.LocalResponseNorm` of (B, ..., C)."""
    return LocalResponseNorm(size, alpha, beta, k)(input)
