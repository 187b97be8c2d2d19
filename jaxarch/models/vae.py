"""Variational autoencoder. Kingma and Welling 2013, arXiv:1312.6114."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn


class VAE(nn.Module):
    """x (B, input_dim) in [0, 1], eps (B, latent_dim) from N(0, 1) -> (reconstruction, mu, logvar).

    The latent is mu + eps * exp(logvar / 2); without `eps` the model draws it. No activation follows the last
    layer of the encoder. The factor beta of Higgins et al. 2017 belongs to the loss.
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
        self.encoder = nn.Sequential(*layers[:-1])
        self.mu = nn.Linear(width, latent_dim, rngs=rngs)
        self.logvar = nn.Linear(width, latent_dim, rngs=rngs)
        layers, width = [], latent_dim
        for dim in reversed(hidden_dims):
            layers += [nn.Linear(width, dim, rngs=rngs), nn.Activation("relu")]
            width = dim
        layers += [nn.Linear(width, input_dim, rngs=rngs), nn.Activation("sigmoid")]
        self.decoder = nn.Sequential(*layers)
        self.noise = nn.Noise(rngs=rngs)

    def encode(self, x: Float[Array, "b i"]) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
        """(B, input_dim) -> mean and log variance of the latent, (B, latent_dim) each."""
        h = self.encoder(x)
        return self.mu(h), self.logvar(h)

    def decode(self, z: Float[Array, "b z"]) -> Float[Array, "b i"]:
        """(B, latent_dim) -> (B, input_dim) in [0, 1]."""
        return self.decoder(z)

    def reparameterize(
        self, mu: Float[Array, "b z"], logvar: Float[Array, "b z"], eps: Float[Array, "b z"] | None = None
    ) -> Float[Array, "b z"]:
        """A sample (B, latent_dim) of the latent, from the noise eps or noise of its own."""
        eps = self.noise(mu) if eps is None else eps
        return mu + eps * jnp.exp(logvar / 2)

    def __call__(
        self, x: Float[Array, "b i"], eps: Float[Array, "b z"] | None = None
    ) -> tuple[Float[Array, "b i"], Float[Array, "b z"], Float[Array, "b z"]]:
        mu, logvar = self.encode(x)
        return self.decode(self.reparameterize(mu, logvar, eps)), mu, logvar
