"""MobileNetV2. Sandler et al. 2018, arXiv:1801.04381, with torchvision's names."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn

# expansion, channels, blocks, stride of the first
TABLE_2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; a shortcut where the shape stays the same.

    (B, H, W, C) -> (B, H / stride, W / stride, C').
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expand_ratio: int, *, rngs: nnx.Rngs
    ):
        hidden = in_channels * expand_ratio
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module | nn.Sequential] = []
        if expand_ratio != 1:
            layers.append(nn.conv_norm_activation(in_channels, hidden, 1, activation="relu6", rngs=rngs))
        layers.append(nn.conv_norm_activation(hidden, hidden, 3, stride, hidden, "relu6", rngs=rngs))
        layers.append(nn.Conv2d(hidden, out_channels, 1, bias=False, rngs=rngs))
        layers.append(nn.BatchNorm2d(out_channels, rngs=rngs))
        self.conv = nn.Sequential(*layers)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """(B, H, W, input_channels) -> (B, num_classes). Any H and W; the feature map is a 32nd of them.

    Each row of the setting is (expansion, channels, blocks, stride of the first block).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] = TABLE_2,
        round_nearest: int = 8,
        dropout: float = 0.2,
        input_channels: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        channels = nn.make_divisible(32 * width_mult, round_nearest)
        last = nn.make_divisible(1280 * max(1.0, width_mult), round_nearest)
        layers: list[nn.Module | nn.Sequential] = [
            nn.conv_norm_activation(input_channels, channels, 3, 2, 1, "relu6", rngs=rngs)
        ]
        for expand_ratio, width, blocks, stride in inverted_residual_setting:
            out_channels = nn.make_divisible(width * width_mult, round_nearest)
            for i in range(blocks):
                first = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, out_channels, first, expand_ratio, rngs=rngs))
                channels = out_channels
        layers.append(nn.conv_norm_activation(channels, last, 1, activation="relu6", rngs=rngs))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout, rngs=rngs), nn.Linear(last, num_classes, rngs=rngs)
        )
        nn.initialize_all(self, nn.Conv2d, "he_fan_out", rngs=rngs)
        nn.initialize_all(self, nn.Linear, nn.normal(0.01), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b o"]:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))
