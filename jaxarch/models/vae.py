"""Variational autoencoder. Kingma and Welling 2013, arXiv:1312.6114."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class VAE(nn.Module):
    """x (B, input_dim) in [0, 1], eps (B, latent_dim) from N(0, 1) -> (reconstruction, mu, logvar).

    The latent is mu + eps * exp(logvar / 2). The factor beta of Higgins et al. 2017 belongs to the loss.
    """

    def __init__(
        self,
        input_dim: int = 784,
        latent_dim: int = 20,
        hidden_dims: Sequence[int] = (512, 256),
        *,
        rngs: nnx.Rngs,
    ):
        layers: list[nn.Module] = []
        width = input_dim
        for dim in hidden_dims:
            layers += [nn.Linear(width, dim, rngs=rngs), nn.Activation("relu")]
            width = dim
        self.encoder = nn.Sequential(*layers)
        self.mu = nn.Linear(width, latent_dim, rngs=rngs)
        self.logvar = nn.Linear(width, latent_dim, rngs=rngs)
        layers, width = [], latent_dim
        for dim in reversed(hidden_dims):
            layers += [nn.Linear(width, dim, rngs=rngs), nn.Activation("relu")]
            width = dim
        layers += [nn.Linear(width, input_dim, rngs=rngs), nn.Activation("sigmoid")]
        self.decoder = nn.Sequential(*layers)

    def encode(self, x: Float[Array, "b i"]) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
        """(B, input_dim) -> mean and log variance of the latent, (B, latent_dim) each."""
        h = self.encoder(x)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Float[Array, "b z"]) -> Float[Array, "b i"]:
        """(B, latent_dim) -> (B, input_dim) in [0, 1]."""
        return self.decoder(z)

    def __call__(
        self, x: Float[Array, "b i"], eps: Float[Array, "b z"]
    ) -> tuple[Float[Array, "b i"], Float[Array, "b z"], Float[Array, "b z"]]:
        mu, logvar = self.encode(x)
        return self.decode(mu + eps * jnp.exp(logvar / 2)), mu, logvar
