"""The base class of every layer: how weights and other state are declared, stored and drawn."""

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import UsageError

Perm = tuple[int, ...] | None


class Module(nnx.Module):
    """A layer that owns parameters under torch's names.

    `LAYOUT` gives, for each of the layer's arrays that JAX stores in another axis order than torch, the
    permutation that turns torch's array into ours: `ours = torch.transpose(permutation)`. Arrays not named
    are stored alike.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The call of a module that is written as torch's are: its `forward`.

        Raises:
            UsageError: the class has neither `__call__` nor `forward`.
        """
        forward = getattr(self, "forward", None)
        if forward is None:
            raise UsageError(f"{type(self).__name__} cannot be called: define __call__ or forward")
        return forward(*args, **kwargs)


class Buffer(nnx.Variable):
    """State that is saved with the model and not trained: torch's register_buffer."""


def optional(value: Float[Array, "..."] | None) -> Any:
    """A parameter, or the placeholder of one that the layer was built without."""
    return nnx.data(None) if value is None else nnx.Param(value)


def from_torch_layout(value: Shaped[Array, "*shape"], perm: Perm) -> Shaped[Array, "*permuted"]:
    """An array in torch's layout, transposed into ours."""
    return value if perm is None else jnp.transpose(value, perm)
