"""A transformer encoder layer over the feature map of a convolutional network.

ResNet-18 without its head (He et al. 2015, arXiv:1512.03385; torchvision's names) into a layer of torch.nn's
transformer encoder (Vaswani et al. 2017, arXiv:1706.03762).
"""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class ResNetFeatures(nn.Module):
    """(B, H, W, C) -> (B, H / 32, W / 32, 8 * base_channels), with torchvision's names."""

    def __init__(self, input_channels: int, base_channels: int, layers: Sequence[int], *, rngs: nnx.Rngs):
        def stage(in_channels: int, out_channels: int, count: int, stride: int) -> nn.Sequential:
            first = nn.ResidualBlock(in_channels, out_channels, stride, rngs=rngs)
            rest = (nn.ResidualBlock(out_channels, out_channels, rngs=rngs) for _ in range(count - 1))
            return nn.Sequential(first, *rest)

        width = base_channels
        self.conv1 = nn.Conv2d(input_channels, width, 7, 2, 3, bias=False, rngs=rngs)
        self.bn1 = nn.BatchNorm2d(width, rngs=rngs)
        self.relu = nn.Activation("relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = stage(width, width, layers[0], 1)
        self.layer2 = stage(width, 2 * width, layers[1], 2)
        self.layer3 = stage(2 * width, 4 * width, layers[2], 2)
        self.layer4 = stage(4 * width, 8 * width, layers[3], 2)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class HybridModel(nn.Module):
    """(B, H, W, input_channels) -> (B, T, 8 * base_channels), T the positions of the feature map, row by row.

    Without positional encoding: attention is blind to where in the map a feature lies.
    """

    def __init__(
        self,
        input_channels: int = 3,
        base_channels: int = 64,
        layers: Sequence[int] = (2, 2, 2, 2),
        nhead: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        self.cnn = ResNetFeatures(input_channels, base_channels, layers, rngs=rngs)
        self.transformer = nn.TransformerEncoderLayer(
            8 * base_channels, nhead, dim_feedforward, dropout, batch_first=True, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        x = self.cnn(x)
        return self.transformer(x.reshape(x.shape[0], -1, x.shape[3]))
