"""Residual convolutions over a sequence, and a classifier: He et al. 2015 in one dimension."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class DeepResidualCNN(nn.Module):
    """(B, T, input_dim) -> (B, num_classes); any T from 1.

    For each of `hidden_dims` a convolution to that width and `num_residual_blocks` residual blocks; from the
    second on, the convolution halves the length. Mean over time, dropout, a linear classifier.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        num_classes: int,
        num_residual_blocks: int = 2,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        self.stages: nn.ModuleList = nn.ModuleList()
        width = input_dim
        for i, hidden_dim in enumerate(hidden_dims):
            entry = nn.Conv1DBlock(
                width, hidden_dim, 3, 1 if i == 0 else 2, 1, bias=False, dropout=dropout, rngs=rngs
            )
            blocks = [
                nn.ResidualBlock1d(hidden_dim, 3, dropout, rngs=rngs) for _ in range(num_residual_blocks)
            ]
            self.stages.append(nn.Sequential(entry, *blocks))
            width = hidden_dim
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.fc = nn.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b t i"]) -> Float[Array, "b o"]:
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.dropout(x.mean(1)))
