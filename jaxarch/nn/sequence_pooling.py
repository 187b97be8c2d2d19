"""A sequence as one vector: mean, max, first token, or a learned weighting."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import unknown
from jaxarch.nn.linear import Linear
from jaxarch.nn.masks import token_mask, valid_steps
from jaxarch.nn.module import Module

POOLINGS = ("mean", "max", "cls", "attention")


class Pooling(Module):
    """(B, T, d_model), mask (B, T) True where valid -> (B, d_model); masked steps never count.

    Of a mask (B, T, T) those count that some step may attend to.

    "mean" and "max" over the valid steps, zero where there is none; "cls" is the first step, masked or not;
    "attention" the sum weighted by softmax(linear(x)) (Lin et al. 2017, arXiv:1703.03130, one hop), the mean
    of all steps where none is valid.

    Raises:
        UsageError: unknown strategy; the known ones are listed.
        DataError: in the call, a mask of another shape.
    """

    def __init__(self, strategy: str, d_model: int, *, rngs: nnx.Rngs):
        if strategy not in POOLINGS:
            raise unknown("pooling", strategy, POOLINGS)
        self.strategy = strategy
        self.attn = Linear(d_model, 1, rngs=rngs) if strategy == "attention" else nnx.data(None)

    def __call__(
        self, x: Float[Array, "b t d"], mask: Shaped[Array, "..."] | None = None
    ) -> Float[Array, "b d"]:
        if self.strategy == "cls":
            return x[:, 0]
        valid = valid_steps(x, token_mask(mask))
        if self.attn is not None:
            scores = jnp.where(valid, self.attn(x)[..., 0], jnp.finfo(x.dtype).min)
            return jnp.einsum("bt,btd->bd", jax.nn.softmax(scores), x)
        valid_features, some = valid[..., None], valid.any(1)[:, None]
        if self.strategy == "max":
            # The gradient of max compares x with it; XLA may round the two differently when it fuses them.
            first = jnp.where(valid_features, x, jnp.finfo(x.dtype).min).argmax(1, keepdims=True)
            return jnp.where(some, jnp.take_along_axis(x, first, 1)[:, 0], 0)
        return jnp.where(valid_features, x, 0).sum(1) / jnp.maximum(valid_features.sum(1), 1).astype(x.dtype)
