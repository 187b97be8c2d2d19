"""VGG. Simonyan and Zisserman 2014, arXiv:1409.1556, with torchvision's names."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import UsageError

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(nn.Module):
    """(B, H, W, input_channels) -> (B, num_classes). H and W of 2^n or more for n "M"; pooled to 7 x 7.

    `cfg` lists the channels of the 3x3 convolutions, and "M" for a max-pool that halves the map.

    Raises:
        UsageError: another letter in cfg.
    """

    def __init__(
        self,
        cfg: Sequence[int | str] = VGG16,
        batch_norm: bool = False,
        num_classes: int = 1000,
        dropout: float = 0.5,
        input_channels: int = 3,
        hidden_dim: int = 4096,
        *,
        rngs: nnx.Rngs,
    ):
        layers: list[nn.Module] = []
        channels = input_channels
        for entry in cfg:
            if isinstance(entry, int):
                layers.append(nn.Conv2d(channels, entry, 3, padding=1, rngs=rngs))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(entry, rngs=rngs))
                layers.append(nn.Activation("relu"))
                channels = entry
            elif entry == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                raise UsageError(f"cfg holds {entry!r}: give channels, or 'M' for a max-pool")
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden_dim, rngs=rngs),
            nn.Activation("relu"),
            nn.Dropout(dropout, rngs=rngs),
            nn.Linear(hidden_dim, hidden_dim, rngs=rngs),
            nn.Activation("relu"),
            nn.Dropout(dropout, rngs=rngs),
            nn.Linear(hidden_dim, num_classes, rngs=rngs),
        )
        nn.initialize_all(self, nn.Conv2d, "he_fan_out", rngs=rngs)
        nn.initialize_all(self, nn.Linear, nn.normal(0.01), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b o"]:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))
