"""Generator conditioned on the label. Mirza and Osindero 2014, arXiv:1411.1784."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class ConditionalGenerator(nn.Module):
    """z (B, latent_dim), labels (B,) in [0, num_classes) -> rows (B, img_size).

    The embedding of the label is concatenated to z. `output_activation="tanh"` bounds the rows to [-1, 1].
    """

    def __init__(
        self,
        latent_dim: int,
        num_classes: int,
        img_size: int,
        hidden_dim: int = 256,
        output_activation: str = "identity",
        *,
        rngs: nnx.Rngs,
    ):
        self.label_emb = nn.Embedding(num_classes, num_classes, rngs=rngs)
        self.model = nn.Sequential(
            nn.Linear(latent_dim + num_classes, hidden_dim, rngs=rngs),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_dim, img_size, rngs=rngs),
            nn.Activation(output_activation),
        )

    def __call__(self, z: Float[Array, "b z"], labels: Int[Array, " b"]) -> Float[Array, "b o"]:
        return self.model(jnp.concatenate((z, self.label_emb(labels)), -1))
