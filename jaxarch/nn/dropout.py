"""Dropout with torch's scaling; the masks can be injected."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.module import Module

_INJECTED: contextvars.ContextVar[dict[str, Iterator] | None] = contextvars.ContextVar("masks", default=None)


class Dropout(Module):
    """Zero each element with probability p and scale the rest by 1 / (1 - p). Any shape.

    torch draws a mask element by element, and so does this. Active in train mode only. The masks have
    the shape `mask_shape(x.shape)`, with 1 where an element is kept.
    """

    def __init__(self, p: float = 0.5, *, rngs: nnx.Rngs):
        if not 0 <= p <= 1:
            raise UsageError(f"dropout probability must be in [0, 1], not {p}")
        self.p = p
        self.deterministic = False
        self.rngs = rngs.dropout.fork()
        self.path = ""

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask for an input of this shape."""
        return shape

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if self.deterministic or self.p == 0:
            return x
        if self.p == 1:
            return jnp.zeros_like(x)
        return jnp.where(self._mask(self.mask_shape(x.shape)), x / (1 - self.p), 0)

    def _mask(self, shape: tuple[int, ...]) -> Array:
        masks = _INJECTED.get()
        if masks is None:
            return jax.random.bernoulli(self.rngs(), 1 - self.p, shape)
        mask = next(masks.get(self.path, iter(())), None)
        if mask is None:
            raise DataError(f"no dropout mask left for a call of {self.path!r}")
        if mask.shape != shape:
            raise DataError(f"dropout mask of {self.path!r} has shape {mask.shape}, the call needs {shape}")
        return mask.astype(bool)


class Dropout1d(Dropout):
    """Zero whole channels of (B, T, C): torch.nn.Dropout1d, channels last."""

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], 1, shape[-1])


class Dropout2d(Dropout):
    """Zero whole channels of (B, H, W, C): torch.nn.Dropout2d, channels last."""

    def mask_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-3], 1, 1, shape[-1])


def label_dropouts(model: nnx.Module) -> list[str]:
    """Tell every Dropout of a model its path, which `inject_masks` speaks; return the paths."""
    paths = []
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Dropout):
            module.path = ".".join(map(str, path))
            paths.append(module.path)
    return paths


@contextlib.contextmanager
def inject_masks(masks: Mapping[str, Sequence[Array]]):
    """Within the context, dropouts of a labelled model take these masks, one per call, in order.

    Works inside jit and remat: the masks may be traced values.

    Raises:
        DataError: in the call, if a mask is missing or of another shape.
    """
    token = _INJECTED.set({path: iter(list(values)) for path, values in masks.items()})
    try:
        yield
    finally:
        _INJECTED.reset(token)
