"""Discriminator conditioned on the label. Mirza and Osindero 2014, arXiv:1411.1784."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn


class ConditionalDiscriminator(nn.Module):
    """Rows (B, input_dim), labels (B,) in [0, num_classes) -> (B, 1), the probability that they are real.

    The embedding of the label is concatenated to the row. `output_activation="identity"` gives logits, or the
    score of a critic. With `return_features` also the last layer's input (B, F), for feature matching.
    """

    def __init__(
        self,
        input_dim: int,
        num_classes: int,
        hidden_dim: int = 256,
        output_activation: str = "sigmoid",
        *,
        rngs: nnx.Rngs,
    ):
        self.label_emb = nn.Embedding(num_classes, num_classes, rngs=rngs)
        self.model = nn.Sequential(
            nn.Linear(input_dim + num_classes, hidden_dim, rngs=rngs),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden_dim, 1, rngs=rngs),
            nn.Activation(output_activation),
        )

    def __call__(
        self, x: Float[Array, "b i"], labels: Int[Array, " b"], return_features: bool = False
    ) -> Float[Array, "b 1"] | tuple[Float[Array, "b 1"], Float[Array, "b f"]]:
        first, leak, score, activation = self.model
        hidden = leak(first(jnp.concatenate((x, self.label_emb(labels)), -1)))
        y = activation(score(hidden))
        return (y, hidden) if return_features else y
