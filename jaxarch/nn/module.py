"""What every layer here shares: how weights are declared, and state that is no parameter."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

Perm = tuple[int, ...] | None


class Module(nnx.Module):
    """A layer that owns parameters under torch's names.

    `LAYOUT` says, for each own leaf that JAX stores in another order than torch, the permutation that
    turns torch's array into ours: `ours = torch.transpose(permutation)`. Leaves not named are stored alike.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {}


class Stream(nnx.RngStream):
    """The keys of `nnx.RngStream`, counted without a look at the count's sharding.

    While a model is only traced that look fails after listing the whole trace, for every key anew.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


def make_rngs(seed: int) -> nnx.Rngs:
    """`nnx.Rngs(seed)`, quicker to build models with."""
    rngs = nnx.Rngs(seed)
    rngs.default = Stream(rngs["default"].key[...], tag="default")  # type: ignore[attr-defined]
    return rngs


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
