"""Variational autoencoder. Kingma and Welling 2013, arXiv:1312.6114."""

from collections.abc import Sequence

from torch import Tensor

from torchref import nn


class VAE(nn.Module):
    """x (B, input_dim) in [0, 1], eps (B, latent_dim) from N(0, 1) -> (reconstruction, mu, logvar).

    The latent is mu + eps * exp(logvar / 2). The factor beta of Higgins et al. 2017 belongs to the loss.
    """

    def __init__(self, input_dim: int = 784, latent_dim: int = 20, hidden_dims: Sequence[int] = (512, 256)):
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim), nn.Activation("relu")]
            width = dim
        self.encoder = nn.Sequential(*layers)
        self.mu = nn.Linear(width, latent_dim)
        self.logvar = nn.Linear(width, latent_dim)
        layers, width = [], latent_dim
        for dim in reversed(hidden_dims):
            layers += [nn.Linear(width, dim), nn.Activation("relu")]
            width = dim
        layers += [nn.Linear(width, input_dim), nn.Activation("sigmoid")]
        self.decoder = nn.Sequential(*layers)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, input_dim) -> mean and log variance of the latent, (B, latent_dim) each."""
        h = self.encoder(x)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, input_dim) in [0, 1]."""
        return self.decoder(z)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(mu + eps * (logvar / 2).exp()), mu, logvar
