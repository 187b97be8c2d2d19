"""Pools under torch.nn.functional's names: the layers of `jaxarch.nn` in one call. Channels last, the batch optional.

Errors are those of the layers. Indices count the positions of a channel's plane in torch's order.
"""

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.nn import adaptive_pool, fractional_pool, pool, unpool
from jaxarch.nn.conv import Size
from jaxarch.nn.functional.random import Randomness, random_keys

Values = Float[Array, "..."]
Indices = Int[Array, "..."]
OutputSize = int | tuple[int | None, ...] | None
Pooled = Values | tuple[Values, Indices]


def max_pool1d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """`nn.MaxPool1d` of (B, T, C); with `return_indices` also where the maxima are."""
    return pool.MaxPool1d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)(input)


def max_pool1d_with_indices(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Values, Indices]:
    """`max_pool1d`, and where the maxima are."""
    return pool.MaxPool1d(kernel_size, stride, padding, dilation, True, ceil_mode)(input)


def max_pool2d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """`nn.MaxPool2d` of (B, H, W, C); with `return_indices` also where the maxima are."""
    return pool.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)(input)


def max_pool2d_with_indices(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Values, Indices]:
    """`max_pool2d`, and where the maxima are."""
    return pool.MaxPool2d(kernel_size, stride, padding, dilation, True, ceil_mode)(input)


def max_pool3d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """`nn.MaxPool3d` of (B, D, H, W, C); with `return_indices` also where the maxima are."""
    return pool.MaxPool3d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)(input)


def max_pool3d_with_indices(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Values, Indices]:
    """`max_pool3d`, and where the maxima are."""
    return pool.MaxPool3d(kernel_size, stride, padding, dilation, True, ceil_mode)(input)


def avg_pool1d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Values:
    """`nn.AvgPool1d` of (B, T, C)."""
    return pool.AvgPool1d(kernel_size, stride, padding, ceil_mode, count_include_pad)(input)


def avg_pool2d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Values:
    """`nn.AvgPool2d` of (B, H, W, C)."""
    layer = pool.AvgPool2d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return layer(input)


def avg_pool3d(
    input: Values,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Values:
    """`nn.AvgPool3d` of (B, D, H, W, C)."""
    layer = pool.AvgPool3d(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return layer(input)


def lp_pool1d(
    input: Values,
    norm_type: float | int,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Values:
    """`nn.LPPool1d` of (B, T, C)."""
    return pool.LPPool1d(norm_type, kernel_size, stride, ceil_mode)(input)


def adaptive_avg_pool1d(input: Values, output_size: OutputSize) -> Values:
    """`nn.AdaptiveAvgPool1d` of (B, T, C)."""
    return adaptive_pool.AdaptiveAvgPool1d(output_size)(input)


def adaptive_max_pool1d(input: Values, output_size: OutputSize, return_indices: bool = False) -> Pooled:
    """`nn.AdaptiveMaxPool1d` of (B, T, C); with `return_indices` also where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool1d(output_size, return_indices)(input)


def adaptive_max_pool1d_with_indices(
    input: Values, output_size: OutputSize, return_indices: bool = False
) -> tuple[Values, Indices]:
    """`adaptive_max_pool1d`, and where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool1d(output_size, True)(input)


def max_unpool1d(
    input: Values,
    indices: Indices,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Values:
    """`nn.MaxUnpool1d` of (B, T, C) and the indices of its maxima."""
    return unpool.MaxUnpool1d(kernel_size, stride, padding)(input, indices, output_size)


def lp_pool2d(
    input: Values,
    norm_type: float | int,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Values:
    """`nn.LPPool2d` of (B, H, W, C)."""
    return pool.LPPool2d(norm_type, kernel_size, stride, ceil_mode)(input)


def adaptive_avg_pool2d(input: Values, output_size: OutputSize) -> Values:
    """`nn.AdaptiveAvgPool2d` of (B, H, W, C)."""
    return adaptive_pool.AdaptiveAvgPool2d(output_size)(input)


def adaptive_max_pool2d(input: Values, output_size: OutputSize, return_indices: bool = False) -> Pooled:
    """`nn.AdaptiveMaxPool2d` of (B, H, W, C); with `return_indices` also where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool2d(output_size, return_indices)(input)


def adaptive_max_pool2d_with_indices(
    input: Values, output_size: OutputSize, return_indices: bool = False
) -> tuple[Values, Indices]:
    """`adaptive_max_pool2d`, and where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool2d(output_size, True)(input)


def max_unpool2d(
    input: Values,
    indices: Indices,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Values:
    """`nn.MaxUnpool2d` of (B, H, W, C) and the indices of its maxima."""
    return unpool.MaxUnpool2d(kernel_size, stride, padding)(input, indices, output_size)


def lp_pool3d(
    input: Values,
    norm_type: float | int,
    kernel_size: Size,
    stride: Size | None = None,
    ceil_mode: bool = False,
) -> Values:
    """`nn.LPPool3d` of (B, D, H, W, C)."""
    return pool.LPPool3d(norm_type, kernel_size, stride, ceil_mode)(input)


def adaptive_avg_pool3d(input: Values, output_size: OutputSize) -> Values:
    """`nn.AdaptiveAvgPool3d` of (B, D, H, W, C)."""
    return adaptive_pool.AdaptiveAvgPool3d(output_size)(input)


def adaptive_max_pool3d(input: Values, output_size: OutputSize, return_indices: bool = False) -> Pooled:
    """`nn.AdaptiveMaxPool3d` of (B, D, H, W, C); with `return_indices` also where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool3d(output_size, return_indices)(input)


def adaptive_max_pool3d_with_indices(
    input: Values, output_size: OutputSize, return_indices: bool = False
) -> tuple[Values, Indices]:
    """`adaptive_max_pool3d`, and where the maxima are."""
    return adaptive_pool.AdaptiveMaxPool3d(output_size, True)(input)


def max_unpool3d(
    input: Values,
    indices: Indices,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Values:
    """`nn.MaxUnpool3d` of (B, D, H, W, C) and the indices of its maxima."""
    return unpool.MaxUnpool3d(kernel_size, stride, padding)(input, indices, output_size)


def _fractional(
    cls: type[Any],
    input: Values,
    kernel_size: Size,
    output_size: Size | None,
    output_ratio: float | tuple[float, ...] | None,
    indices: bool,
    samples: Values | None,
    rngs: Randomness,
) -> Any:
    drawn = None if samples is not None else nnx.Rngs(random_keys(rngs, "a fractional max pool"))
    return cls(kernel_size, output_size, output_ratio, indices, samples, rngs=drawn)(input)


def fractional_max_pool2d(
    input: Values,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | tuple[float, ...] | None = None,
    return_indices: bool = False,
    _random_samples: Values | None = None,
    *,
    rngs: Randomness = None,
) -> Pooled:
    """`nn.FractionalMaxPool2d` of (B, H, W, C), its regions from `rngs` or `_random_samples`."""
    cls = fractional_pool.FractionalMaxPool2d
    return _fractional(
        cls, input, kernel_size, output_size, output_ratio, return_indices, _random_samples, rngs
    )


def fractional_max_pool2d_with_indices(
    input: Values,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | tuple[float, ...] | None = None,
    return_indices: bool = False,
    _random_samples: Values | None = None,
    *,
    rngs: Randomness = None,
) -> tuple[Values, Indices]:
    """`fractional_max_pool2d`, and where the maxima are."""
    cls = fractional_pool.FractionalMaxPool2d
    return _fractional(cls, input, kernel_size, output_size, output_ratio, True, _random_samples, rngs)


def fractional_max_pool3d(
    input: Values,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | tuple[float, ...] | None = None,
    return_indices: bool = False,
    _random_samples: Values | None = None,
    *,
    rngs: Randomness = None,
) -> Pooled:
    """`nn.FractionalMaxPool3d` of (B, D, H, W, C), its regions from `rngs` or `_random_samples`."""
    cls = fractional_pool.FractionalMaxPool3d
    return _fractional(
        cls, input, kernel_size, output_size, output_ratio, return_indices, _random_samples, rngs
    )


def fractional_max_pool3d_with_indices(
    input: Values,
    kernel_size: Size,
    output_size: Size | None = None,
    output_ratio: float | tuple[float, ...] | None = None,
    return_indices: bool = False,
    _random_samples: Values | None = None,
    *,
    rngs: Randomness = None,
) -> tuple[Values, Indices]:
    """`fractional_max_pool3d`, and where the maxima are."""
    cls = fractional_pool.FractionalMaxPool3d
    return _fractional(cls, input, kernel_size, output_size, output_ratio, True, _random_samples, rngs)
