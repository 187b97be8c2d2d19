"""Linear and Embedding with torch's names, initialisers and checks."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError
from jaxarch.nn import init
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional


class Linear(Module):
    """y = x W + b with torch.nn.Linear's names and initialiser; the weight is stored (in, out).

    (..., in_features) -> (..., out_features).
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (1, 0)}

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rngs: nnx.Rngs):
        weight = init.torch_default(rngs.params(), (out_features, in_features))
        self.in_features, self.out_features = in_features, out_features
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        bound = 1 / math.sqrt(in_features)
        self.bias = optional(init.uniform(bound)(rngs.params(), (out_features,)) if bias else None)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = x @ self.weight[...]
        return y if self.bias is None else y + self.bias[...]


class Embedding(Module):
    """A table of vectors, N(0, 1) at first; the row `padding_idx` starts at zero and gets no gradient.

    ids (...,) in [0, num_embeddings) -> (..., embedding_dim).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *, rngs: nnx.Rngs
    ):
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise DataError(f"padding_idx {padding_idx} is not a row of a table of {num_embeddings}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        weight = init.normal(1.0)(rngs.params(), (num_embeddings, embedding_dim))
        if self.padding_idx is not None:
            weight = weight.at[self.padding_idx].set(0)
        self.weight = nnx.Param(weight)

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        check_ids(ids, self.num_embeddings)
        weight = self.weight[...]
        if self.padding_idx is not None:
            # torch uses the row's value but gives it no gradient.
            row = weight[self.padding_idx]
            weight = weight.at[self.padding_idx].set(jax.lax.stop_gradient(row))
        # An id out of range gives NaN under jit: it is never clamped or wrapped in silence.
        return weight.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def check_ids(ids: Int[Array, "..."], size: int, what: str = "id") -> None:
    """Refuse ids outside [0, size), as torch does. Under jit values are unknown and nothing is checked.

    Raises:
        DataError: naming the first id out of range and the size; ids that are not integers, under jit too.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise DataError(f"every {what} must be an integer, not {ids.dtype}")
    if isinstance(ids, jax.core.Tracer) or ids.size == 0:
        return
    values = np.asarray(ids)
    bad = values[(values < 0) | (values >= size)]
    if bad.size:
        raise DataError(f"{what} {bad[0]} is out of range: it must be in [0, {size})")
