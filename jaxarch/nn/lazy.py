"""Layers whose number of input channels their first input decides: torch's Lazy classes."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxarch.errors import UsageError
from jaxarch.nn.conv import Conv1d, Conv2d, Conv3d, Size
from jaxarch.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from jaxarch.nn.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.norm import BatchNorm1d, BatchNorm2d, BatchNorm3d


class Lazy(Module):
    """A layer without parameters that becomes one of the class `becomes` at its first call, for good.

    The last axis of that input is the missing number of channels. Call the model once, outside jit, before anything
    needs its parameters.

    Raises:
        UsageError: the first call is traced.
    """

    becomes: ClassVar[type[Module]]

    def _wait(self, rngs: nnx.Rngs | None, *arguments: Any, **named: Any) -> None:
        """Keep what the layer will be built with."""
        self.arguments, self.named = arguments, tuple(named.items())
        self.key: Any = nnx.data(None if rngs is None else nnx.RngKey(rngs.params(), tag="params"))
        self.use_running_average = False

    def __call__(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, jax.core.Tracer):
            raise UsageError(
                f"a {type(self).__name__} needs its first input outside jit: call the model once before"
            )
        rngs = None if self.key is None else nnx.Rngs(params=self.key[...])
        build: Any = self.becomes
        layer = build(input.shape[-1], *self.arguments, **dict(self.named), rngs=rngs)
        if hasattr(layer, "use_running_average"):
            layer.use_running_average = self.use_running_average
        vars(self).clear()
        vars(self).update(vars(layer))
        self.__class__ = self.becomes  # type: ignore[assignment]
        return self(input, *args, **kwargs)


class LazyLinear(Lazy):
    """torch.nn.LazyLinear: becomes a `Linear`."""

    becomes = Linear

    def __init__(self, out_features: int, bias: bool = True, *, rngs: nnx.Rngs):
        self._wait(rngs, out_features, bias)


class _LazyConv(Lazy):
    """A convolution without its in_channels."""

    def __init__(
        self,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rngs: nnx.Rngs,
    ):
        self._wait(rngs, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)


class LazyConv1d(_LazyConv):
    """torch.nn.LazyConv1d: becomes a `Conv1d`."""

    becomes = Conv1d


class LazyConv2d(_LazyConv):
    """torch.nn.LazyConv2d: becomes a `Conv2d`."""

    becomes = Conv2d


class LazyConv3d(_LazyConv):
    """torch.nn.LazyConv3d: becomes a `Conv3d`."""

    becomes = Conv3d


class _LazyConvTranspose(Lazy):
    """A transposed convolution without its in_channels."""

    def __init__(
        self,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        *,
        rngs: nnx.Rngs,
    ):
        sizes = kernel_size, stride, padding, output_padding
        self._wait(rngs, out_channels, *sizes, groups, bias, dilation, padding_mode)


class LazyConvTranspose1d(_LazyConvTranspose):
    """torch.nn.LazyConvTranspose1d: becomes a `ConvTranspose1d`."""

    becomes = ConvTranspose1d


class LazyConvTranspose2d(_LazyConvTranspose):
    """torch.nn.LazyConvTranspose2d: becomes a `ConvTranspose2d`."""

    becomes = ConvTranspose2d


class LazyConvTranspose3d(_LazyConvTranspose):
    """torch.nn.LazyConvTranspose3d: becomes a `ConvTranspose3d`."""

    becomes = ConvTranspose3d


class _LazyNorm(Lazy):
    """A normalisation of channels without their number."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        rngs: nnx.Rngs | None = None,
    ):
        self._wait(None, eps, momentum, affine, track_running_stats, bias=bias)


class LazyBatchNorm1d(_LazyNorm):
    """torch.nn.LazyBatchNorm1d: becomes a `BatchNorm1d`."""

    becomes = BatchNorm1d


class LazyBatchNorm2d(_LazyNorm):
    """torch.nn.LazyBatchNorm2d: becomes a `BatchNorm2d`."""

    becomes = BatchNorm2d


class LazyBatchNorm3d(_LazyNorm):
    """torch.nn.LazyBatchNorm3d: becomes a `BatchNorm3d`."""

    becomes = BatchNorm3d


class LazyInstanceNorm1d(_LazyNorm):
    """torch.nn.LazyInstanceNorm1d: becomes an `InstanceNorm1d`, affine and tracked unless told otherwise."""

    becomes = InstanceNorm1d


class LazyInstanceNorm2d(_LazyNorm):
    """torch.nn.LazyInstanceNorm2d: becomes an `InstanceNorm2d`. See `LazyInstanceNorm1d`."""

    becomes = InstanceNorm2d


class LazyInstanceNorm3d(_LazyNorm):
    """torch.nn.LazyInstanceNorm3d: becomes an `InstanceNorm3d`. See `LazyInstanceNorm1d`."""

    becomes = InstanceNorm3d
