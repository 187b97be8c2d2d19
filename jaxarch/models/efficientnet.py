"""EfficientNet. Tan and Le 2019, arXiv:1905.11946, with torchvision's names.

The lite variant has no squeeze and excitation and ReLU6 for swish (Google's EfficientNet-Lite0).
"""

import math
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn

# expansion, kernel, stride of the first, channels in and out, blocks
TABLE_1 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class MBConv(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project; a shortcut where the shape stays the same.

    (B, H, W, C) -> (B, H / stride, W / stride, C'). The shortcut's branch is dropped for whole samples with
    probability `stochastic_depth_prob`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: int = 6,
        stochastic_depth_prob: float = 0.0,
        squeeze_excitation: bool = True,
        activation: str = "silu",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        hidden = nn.make_divisible(in_channels * expand_ratio)
        norm = (norm_eps, norm_momentum)
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module | nn.Sequential] = []
        if hidden != in_channels:
            layers.append(nn.conv_norm_activation(in_channels, hidden, 1, 1, 1, activation, *norm, rngs=rngs))
        layers.append(
            nn.conv_norm_activation(hidden, hidden, kernel_size, stride, hidden, activation, *norm, rngs=rngs)
        )
        if squeeze_excitation:
            layers.append(nn.SqueezeExcitation(hidden, max(1, in_channels // 4), activation, rngs=rngs))
        layers.append(nn.conv_norm_activation(hidden, out_channels, 1, 1, 1, None, *norm, rngs=rngs))
        self.block = nn.Sequential(*layers)
        self.stochastic_depth = nn.StochasticDepth(stochastic_depth_prob, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        y = self.block(x)
        return x + self.stochastic_depth(y) if self.use_res_connect else y


class EfficientNet(nn.Module):
    """(B, H, W, input_channels) -> (B, num_classes). Any H and W; the feature map is a 32nd of them.

    Rows of the setting are (expansion, kernel, stride of the first block, channels in, channels out, blocks);
    width_mult scales the channels, depth_mult the blocks. Deeper branches are dropped more often.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        dropout: float = 0.2,
        stochastic_depth_prob: float = 0.2,
        num_classes: int = 1000,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        squeeze_excitation: bool = True,
        activation: str = "silu",
        inverted_residual_setting: Sequence[Sequence[int]] = TABLE_1,
        input_channels: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        norm = (norm_eps, norm_momentum)
        counts = [math.ceil(row[5] * depth_mult) for row in inverted_residual_setting]
        stem = nn.make_divisible(inverted_residual_setting[0][3] * width_mult)
        layers: list[nn.Module | nn.Sequential] = [
            nn.conv_norm_activation(input_channels, stem, 3, 2, 1, activation, *norm, rngs=rngs)
        ]
        channels, done = stem, 0
        for (expand, kernel, stride, start, end, _), count in zip(
            inverted_residual_setting, counts, strict=True
        ):
            channels, out_channels = (
                nn.make_divisible(start * width_mult),
                nn.make_divisible(end * width_mult),
            )
            stage: list[nn.Module | nn.Sequential] = []
            for i in range(count):
                stage.append(
                    MBConv(
                        channels,
                        out_channels,
                        kernel,
                        stride if i == 0 else 1,
                        expand,
                        stochastic_depth_prob * done / sum(counts),
                        squeeze_excitation,
                        activation,
                        *norm,
                        rngs=rngs,
                    )
                )
                channels, done = out_channels, done + 1
            layers.append(nn.Sequential(*stage))
        layers.append(nn.conv_norm_activation(channels, 4 * channels, 1, 1, 1, activation, *norm, rngs=rngs))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout, rngs=rngs), nn.Linear(4 * channels, num_classes, rngs=rngs)
        )
        nn.initialize_all(self, nn.Conv2d, "he_fan_out", rngs=rngs)
        nn.initialize_all(self, nn.Linear, nn.uniform(1 / math.sqrt(num_classes)), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b o"]:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))
