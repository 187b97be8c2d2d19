"""Multi-layer perceptron. Rumelhart, Hinton and Williams 1986."""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class MLP(nn.Module):
    """(B, input_dim) -> (B, output_dim). Per hidden layer: Linear, batch norm, activation, dropout;
    a part that is switched off takes no index."""

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        batch_norm: bool = False,
        weight_init: str = "xavier",
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for dim in hidden_dims:
            layers.append(nn.initialized(nn.Linear(input_dim, dim), weight_init))
            if batch_norm:
                layers.append(nn.BatchNorm1d(dim))
            layers.append(nn.Activation(activation))
            if dropout_rate > 0:
                layers.append(nn.Dropout(dropout_rate))
            input_dim = dim
        layers.append(nn.initialized(nn.Linear(input_dim, output_dim), weight_init))
        self.network = nn.Sequential(*layers)

    def get_num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
