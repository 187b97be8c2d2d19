"""Features of a sequence from convolutions of several widths: Kim 2014."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import unknown

POOLS = ("max", "avg")


class CNNFeatureExtractor(nn.Module):
    """(B, T, input_dim) -> (B, output_dim), output_dim = len(kernel_sizes) * hidden_dims[-1]; any T from 1.

    Every layer runs all kernel sizes in parallel and concatenates their channels; `pool_type` pools over time
    at the end.

    Raises:
        UsageError: unknown pool_type; the known ones are listed.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int] = (128, 256, 512),
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dropout: float = 0.1,
        activation: str = "relu",
        pool_type: str = "max",
        *,
        rngs: nnx.Rngs,
    ):
        if pool_type not in POOLS:
            raise unknown("pool_type", pool_type, POOLS)
        self.pool_type = pool_type
        self.layers: nn.ModuleList = nn.ModuleList()
        width = input_dim
        for hidden_dim in hidden_dims:
            layer = nn.ParallelConv1d(width, hidden_dim, kernel_sizes, activation, dropout, rngs=rngs)
            self.layers.append(layer)
            width = layer.out_channels
        self.output_dim = width

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b o"]:
        for layer in self.layers:
            x = layer(x)
        return nn.first_max(x, 1) if self.pool_type == "max" else x.mean(1)
