"""What every layer here shares: how weights are declared, and state that is no parameter."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

Perm = tuple[int, ...] | None


class Module(nnx.Module):
    """A layer that owns parameters under torch's names.

    `LAYOUT` says, for each own leaf that JAX stores in another order than torch, the permutation that
    turns torch's array into ours: `ours = torch.transpose(permutation)`. Leaves not named are stored alike.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {}


class Buffer(nnx.Variable):
    """State that is saved with the model and not trained: torch's register_buffer."""


def optional(value) -> Any:
    """A parameter, or what stands for one that a layer was built without."""
    return nnx.data(None) if value is None else nnx.Param(value)


def from_torch_layout(value, perm: Perm):
    """An array of torch's layout in ours."""
    return value if perm is None else jnp.transpose(value, perm)


def wide_dtype(dtype) -> jnp.dtype:
    """The dtype to compute sums and exponentials in: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
