"""Dropout with torch's scaling; its masks can be recorded and injected."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.module import Module

Shape = tuple[int, ...]
# Where a dropout gets its mask: (path, shape) -> mask. None: it draws one.
_source: contextvars.ContextVar[Callable[[str, Shape], Array] | None] = contextvars.ContextVar(
    "dropout masks", default=None
)


class Dropout(Module):
    """Zero each element with probability p and scale the rest by 1 / (1 - p). Any shape.

    torch draws a mask element by element, and so does this. Active in train mode only. The masks have
    the shape `mask_shape(input.shape)`, with 1 where an element is kept. `inplace` has no effect.

    Raises:
        UsageError: p is no probability.
        DataError: in the call of a dropout of channels, another number of axes than it names.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, rngs: nnx.Rngs):
        if not 0 <= p <= 1:
            raise UsageError(f"dropout probability must be in [0, 1], not {p}")
        self.p, self.inplace = p, inplace
        self.deterministic = False
        self.rngs = rngs.dropout.fork()
        self.path = ""

    def mask_shape(self, shape: Shape) -> Shape:
        """The shape of the mask for an input of this shape."""
        return shape

    def __call__(self, input: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        mask_shape = self.mask_shape(input.shape)
        if self.deterministic or self.p == 0:
            return input
        if self.p == 1:
            return jnp.zeros_like(input)
        return self._masked(input, self._mask(mask_shape))

    def _mask(self, shape: Shape) -> Bool[Array, "..."]:
        source = _source.get()
        if source is None:
            return jax.random.bernoulli(self.rngs(), 1 - self.p, shape)
        return source(self.path, shape)

    def _masked(self, x: Float[Array, "*shape"], mask: Bool[Array, "..."]) -> Float[Array, "*shape"]:
        return jnp.where(mask, x / (1 - self.p), 0)


class _ChannelDropout(Dropout):
    """The base class of dropouts of whole channels, which are the last axis."""

    axes: ClassVar[dict[int, int]]  # of an input -> how many of them are batch axes

    def mask_shape(self, shape: Shape) -> Shape:
        """The shape of the mask for an input of this shape."""
        if len(shape) not in self.axes:
            raise DataError(
                f"{type(self).__name__} takes {tuple(self.axes)} axes, not an input of shape {shape}"
            )
        batch = self.axes[len(shape)]
        return (*shape[:batch], *(1,) * (len(shape) - batch - 1), shape[-1])


class Dropout1d(_ChannelDropout):
    """Zero whole channels of (B, T, C) or (T, C): torch.nn.Dropout1d, channels last."""

    axes: ClassVar[dict[int, int]] = {2: 0, 3: 1}


class Dropout2d(_ChannelDropout):
    """Zero whole channels of (B, H, W, C): torch.nn.Dropout2d, channels last. Three axes are (B, T, C), as in torch."""

    axes: ClassVar[dict[int, int]] = {3: 1, 4: 1}


class Dropout3d(_ChannelDropout):
    """Zero whole channels of (B, D, H, W, C) or (D, H, W, C): torch.nn.Dropout3d, channels last."""

    axes: ClassVar[dict[int, int]] = {4: 0, 5: 1}


class AlphaDropout(Dropout):
    """Set each element to SELU's negative limit with probability p, then restore mean 0 and variance 1. Any shape.

    Klambauer et al. 2017, arXiv:1706.02515. With p = 1 the result is 0, as in torch.
    """

    def _masked(self, x: Float[Array, "*shape"], mask: Bool[Array, "..."]) -> Float[Array, "*shape"]:
        limit = 1.7580993408473766  # SELU's scale * alpha
        scale = 1 / math.sqrt((limit**2 * self.p + 1) * (1 - self.p))
        return jnp.where(mask, x, -limit) * scale + limit * scale * self.p


class FeatureAlphaDropout(AlphaDropout):
    """AlphaDropout of whole channels: (B, ..., C) -> the same. The first axis is always a batch, as in torch."""

    def mask_shape(self, shape: Shape) -> Shape:
        """The shape of the mask for an input of this shape."""
        if len(shape) < 2:
            raise DataError(f"FeatureAlphaDropout takes (B, ..., C), not an input of shape {shape}")
        return (shape[0], *(1,) * (len(shape) - 2), shape[-1])


def label_dropouts(model: nnx.Module) -> list[str]:
    """Set the path of every Dropout of a model, by which its masks are recorded and injected; return the paths."""
    paths = []
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Dropout):
            module.path = ".".join(map(str, path))
            paths.append(module.path)
    return paths


@contextlib.contextmanager
def inject_masks(masks: Mapping[str, Sequence[Array]]) -> Iterator[None]:
    """Within the context, dropouts of a labelled model take these masks, one per call, in order.

    Works inside jit and remat: the masks may be traced values.

    Raises:
        DataError: in the call, if a mask is missing or of another shape.
    """
    remaining = {path: iter(list(values)) for path, values in masks.items()}

    def next_mask(path: str, shape: Shape) -> Array:
        mask = next(remaining.get(path, iter(())), None)
        if mask is None:
            raise DataError(f"no dropout mask left for a call of {path!r}")
        if mask.shape != shape:
            raise DataError(f"dropout mask of {path!r} has shape {mask.shape}, the call needs {shape}")
        return mask.astype(bool)

    with _masks_from(next_mask):
        yield


@contextlib.contextmanager
def record_masks() -> Iterator[dict[str, list[Shape]]]:
    """Within the context, dropouts of a labelled model drop nothing, and note the mask shape of every call.

    Yields the shapes by path, in the order of the calls. Under `nnx.eval_shape` nothing is computed.
    """
    shapes: dict[str, list[Shape]] = {}

    def note(path: str, shape: Shape) -> Array:
        shapes.setdefault(path, []).append(shape)
        return jnp.ones(shape, bool)

    with _masks_from(note):
        yield shapes


@contextlib.contextmanager
def _masks_from(source: Callable[[str, Shape], Array]) -> Iterator[None]:
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
