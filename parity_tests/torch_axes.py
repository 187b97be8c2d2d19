"""Where torch's channels are, class by class: arrays of the classes named here have them last in JAX.

A class without a line has the same axes in both packages.
"""

from typing import NamedTuple

import numpy as np


class Axes(NamedTuple):
    """Which arrays of a class move their channels.

    With `rank` spatial axes the channels are before them, with or without a batch axis in front. Without a rank
    every floating array of two axes or more is (B, C, ...).
    """

    rank: int | None = None
    outputs: bool = True
    output_rank: int | None = None  # where it differs

    def of_outputs(self) -> "Axes":
        """Those of the outputs."""
        if not self.outputs:
            return SAME
        return self if self.output_rank is None else Axes(self.output_rank)

    def channel_axis(self, value: np.ndarray) -> int | None:
        """The axis of torch's array that is last in JAX; None where nothing moves."""
        if self.rank is None:
            return 1 if value.ndim > 1 and np.issubdtype(value.dtype, np.floating) else None
        return {self.rank + 1: 0, self.rank + 2: 1}.get(value.ndim)

    def to_jax(self, value: np.ndarray) -> np.ndarray:
        """torch's array in JAX's axis order."""
        axis = self.channel_axis(value)
        return value if axis is None else np.moveaxis(value, axis, -1)

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """JAX's array in torch's axis order."""
        axis = self.channel_axis(value)
        return value if axis is None else np.moveaxis(value, -1, axis)


SAME = Axes(rank=-9)
CHANNELS = Axes()
CLASSES = Axes(outputs=False)  # (B, classes, ...) -> a loss without that axis

AXES: dict[str, Axes] = {
    **{
        f"{name}{rank}d": Axes(rank)
        for rank in (1, 2, 3)
        for name in (
            "AdaptiveAvgPool",
            "AdaptiveMaxPool",
            "AvgPool",
            "CircularPad",
            "ConstantPad",
            "Conv",
            "ConvTranspose",
            "FractionalMaxPool",
            "InstanceNorm",
            "LazyConv",
            "LazyConvTranspose",
            "LazyInstanceNorm",
            "LPPool",
            "MaxPool",
            "MaxUnpool",
            "ReflectionPad",
            "ReplicationPad",
            "ZeroPad",
        )
    },
    "BatchNorm1d": CHANNELS,
    "BatchNorm2d": CHANNELS,
    "BatchNorm3d": CHANNELS,
    "ChannelShuffle": CHANNELS,
    "CrossEntropyLoss": CLASSES,
    "Flatten": CHANNELS,
    "Fold": Axes(1, output_rank=2),
    "GroupNorm": CHANNELS,
    "LinearCrossEntropyLoss": CLASSES,
    "LazyBatchNorm1d": CHANNELS,
    "LazyBatchNorm2d": CHANNELS,
    "LazyBatchNorm3d": CHANNELS,
    "LocalResponseNorm": CHANNELS,
    "NLLLoss": CLASSES,
    "PixelShuffle": Axes(2),
    "PixelUnshuffle": Axes(2),
    "PReLU": CHANNELS,
    "Softmax2d": Axes(2),
    "Unflatten": CHANNELS,
    "Unfold": Axes(2, output_rank=1),
    "Upsample": Axes(2),
    "UpsamplingBilinear2d": Axes(2),
    "UpsamplingNearest2d": Axes(2),
}
