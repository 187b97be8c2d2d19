"""CNN in the style of LeNet. LeCun et al. 1998, doi:10.1109/5.726791."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import DataError, UsageError


class CNN(nn.Module):
    """(B, H, W, input_channels) -> (B, num_classes), of images of `image_size` (H, W) only.

    Two convolutions, each with ReLU and a max-pool that halves the feature map, and two linear layers.

    Raises:
        UsageError: an image_size too small for the poolings.
        DataError: in the call, images of another size.
    """

    def __init__(
        self,
        image_size: Sequence[int] = (32, 32),
        num_classes: int = 10,
        input_channels: int = 3,
        channels: Sequence[int] = (16, 32),
        hidden_dim: int = 128,
        *,
        rngs: nnx.Rngs,
    ):
        height, width = image_size
        if min(height, width) < 4:
            raise UsageError(f"image_size {height} x {width} is too small: two poolings need 4 x 4")
        self.image_size = (height, width)
        self.features = nn.Sequential(
            nn.Conv2d(input_channels, channels[0], 3, padding=1, rngs=rngs),
            nn.Activation("relu"),
            nn.MaxPool2d(2),
            nn.Conv2d(channels[0], channels[1], 3, padding=1, rngs=rngs),
            nn.Activation("relu"),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels[1] * (height // 4) * (width // 4), hidden_dim, rngs=rngs),
            nn.Activation("relu"),
            nn.Linear(hidden_dim, num_classes, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b o"]:
        if (size := tuple(x.shape[1:3])) != self.image_size:
            raise DataError(f"images are {size}, the model was built for image_size {self.image_size}")
        return self.classifier(self.features(x))
