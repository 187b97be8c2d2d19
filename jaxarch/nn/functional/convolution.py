"""Convolutions under torch.nn.functional's names: channels last, weights in torch's layout, the batch optional."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.conv import Size, check_groups, convolution, ends_of, per_axis
from jaxarch.nn.conv_transpose import check_output_padding, transposed_convolution

Values = Float[Array, "..."]


def _batched(input: Values, weight: Values, rank: int) -> Values:
    """The input with a batch axis.

    Raises:
        DataError: another number of axes of the input or the weight.
    """
    if weight.ndim != rank + 2 or input.ndim not in (rank + 1, rank + 2):
        raise DataError(
            f"input {input.shape} and weight {weight.shape} must have {rank} spatial axes: "
            "(B, *space, C) and (out, in, *kernel)"
        )
    return input if input.ndim == rank + 2 else input[None]


def _conv(
    rank: int,
    input: Values,
    weight: Values,
    bias: Values | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Values:
    x = _batched(input, weight, rank)
    check_groups(weight.shape[1] * groups, weight.shape[0], groups)
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    ends = ends_of(padding, weight.shape[2:], strides, dilations)
    kernel = jnp.moveaxis(weight, (0, 1), (-1, -2))
    y = convolution(x, kernel, bias, strides, ends, dilations, groups)
    return y if input.ndim == x.ndim else y[0]


def conv1d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Values:
    """(B, T, in) by a weight (out, in / groups, k), torch's layout -> (B, T', out). Errors: `nn.Conv1d`."""
    return _conv(1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Values:
    """(B, H, W, in) by a weight (out, in / groups, kh, kw), torch's layout -> (B, H', W', out). Errors: `nn.Conv1d`."""
    return _conv(2, input, weight, bias, stride, padding, dilation, groups)


def conv3d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Values:
    """(B, D, H, W, in) by a weight (out, in / groups, kd, kh, kw), torch's layout. Errors: `nn.Conv1d`."""
    return _conv(3, input, weight, bias, stride, padding, dilation, groups)


def conv_tbc(input: Values, weight: Values, bias: Values, pad: int = 0) -> Values:
    """torch.nn.functional.conv_tbc: (T, B, in) by a weight (k, in, out) -> (T', B, out); the time first in both."""
    if input.ndim != 3 or weight.ndim != 3:
        raise DataError(f"input {input.shape} and weight {weight.shape} must be (T, B, in) and (k, in, out)")
    y = convolution(input.swapaxes(0, 1), weight, bias, (1,), ((pad, pad),), (1,), 1)
    return y.swapaxes(0, 1)


def _transposed(
    rank: int,
    input: Values,
    weight: Values,
    bias: Values | None,
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Values:
    x = _batched(input, weight, rank)
    check_groups(weight.shape[0], weight.shape[1] * groups, groups)
    strides, dilations = per_axis(stride, rank, "stride"), per_axis(dilation, rank, "dilation")
    extra = per_axis(output_padding, rank, "output_padding")
    check_output_padding(extra, strides, dilations)
    kernel = jnp.moveaxis(weight, (0, 1), (-2, -1))
    pads = per_axis(padding, rank, "padding")
    y = transposed_convolution(x, kernel, bias, strides, pads, extra, groups, dilations)
    return y if input.ndim == x.ndim else y[0]


def conv_transpose1d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Values:
    """(B, T, in) by a weight (in, out / groups, k), torch's layout. Errors: `nn.ConvTranspose1d`."""
    return _transposed(1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Values:
    """(B, H, W, in) by a weight (in, out / groups, kh, kw), torch's layout. Errors: `nn.ConvTranspose1d`."""
    return _transposed(2, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose3d(
    input: Values,
    weight: Values,
    bias: Values | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Values:
    """(B, D, H, W, in) by a weight (in, out / groups, kd, kh, kw), torch's layout. Errors: `nn.ConvTranspose1d`."""
    return _transposed(3, input, weight, bias, stride, padding, output_padding, groups, dilation)
