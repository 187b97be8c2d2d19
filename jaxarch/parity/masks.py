"""The dropout masks of both frameworks: drawn by running torch, fitted to the shapes that JAX asks for."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import nn, state
from jaxarch.errors import UsageError
from jaxarch.parity.compare import leaves
from jaxarch.parity.pair import Pair

if TYPE_CHECKING:
    import torch

# By the dropout's path, a mask for each of its calls: numpy's for torch, JAX's for jax.
Masks = dict[str, list[Any]]


def torch_dropouts(module: "torch.nn.Module") -> dict[str, "torch.nn.Module"]:
    """The active dropout modules of a torch module by path."""
    from torch import nn as tnn

    kinds = (
        tnn.Dropout,
        tnn.Dropout1d,
        tnn.Dropout2d,
        tnn.Dropout3d,
        tnn.AlphaDropout,
        tnn.FeatureAlphaDropout,
    )
    return {k: m for k, m in module.named_modules() if isinstance(m, kinds) and 0 < m.p < 1}


def _mask_shape(module: "torch.nn.Module", shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the mask that a torch dropout draws for an input of this shape."""
    from torch import nn as tnn

    if isinstance(module, tnn.Dropout | tnn.AlphaDropout):
        return shape
    # One axis fewer than these dropouts have with a batch is an example without one.
    examples: dict[type, int] = {tnn.Dropout1d: 2, tnn.Dropout3d: 4}
    channels = 1 if len(shape) == examples.get(type(module)) else 2
    return (*shape[:channels], *(1,) * (len(shape) - channels))


def _masked(module: "torch.nn.Module", x: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """What a torch dropout makes of its input with this mask."""
    import torch
    from torch import nn as tnn

    p: Any = module.p
    if not isinstance(module, tnn.AlphaDropout | tnn.FeatureAlphaDropout):
        return torch.where(mask, x / (1 - p), torch.zeros((), dtype=x.dtype))
    limit = 1.7580993408473766  # SELU's scale * alpha
    scale = 1 / math.sqrt((limit**2 * p + 1) * (1 - p))
    return torch.where(mask, x, -limit) * scale + limit * scale * p


@contextlib.contextmanager
def torch_masks(pair: Pair, masks: Masks, draw: bool) -> Iterator[None]:
    """Within the context torch's dropouts take masks by path, either drawn and added to `masks` or those of `masks`.

    Calls beyond the last mask begin again at the first: checkpointed blocks run a second time in backward.
    """
    import torch

    rng = np.random.default_rng(pair.seed)
    patched = torch_dropouts(pair.torch)

    def forward_of(path: str, module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        calls = itertools.count()

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not module.training:
                return x
            if draw:
                shape = _mask_shape(module, tuple(x.shape))
                masks.setdefault(path, []).append(rng.random(shape) >= module.p)
            values = masks[path]
            return _masked(module, x, torch.from_numpy(values[next(calls) % len(values)]))

        return forward

    for path, module in patched.items():
        module.forward = forward_of(path, module)
    try:
        yield
    finally:
        for module in patched.values():
            del module.forward


def draw_masks(pair: Pair) -> Masks:
    """A mask for every call of every active dropout, drawn while torch runs once."""
    import torch

    masks: Masks = {}
    with torch.no_grad(), torch_masks(pair, masks, draw=True):
        pair.torch(**pair.torch_inputs())
    pair.torch.load_state_dict(pair.weights)
    return masks


def jax_masks(pair: Pair, masks: Masks) -> Masks:
    """Torch's masks in the shapes that JAX's dropouts ask for; channel masks have their channel axis moved."""
    if not masks:
        return {}
    with nn.record_masks() as needed:
        nnx.eval_shape(lambda model, inputs: leaves(model(**inputs)), pair.model, pair.jax_inputs())
    result: Masks = {}
    for path, values in masks.items():
        shapes = needed.get(path, [])
        if len(shapes) != len(values):
            raise UsageError(
                f"dropout {path!r} runs {len(values)} times in torch, {len(shapes)} times in jax"
            )
        result[path] = [jnp.asarray(_fitted(path, v, s)) for v, s in zip(values, shapes, strict=True)]
    return result


def _fitted(path: str, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask as it is or with its channel axis last, whichever has the shape."""
    moved = [np.moveaxis(mask, axis, -1) for axis in (1, 0) if mask.ndim > 1 + axis]
    for candidate in (mask, *moved):
        if candidate.shape == shape:
            return candidate
    raise UsageError(f"dropout {path!r} sees {mask.shape} in torch and {shape} in jax")


def check_dropouts(pair: Pair) -> None:
    """Refuse layers whose random numbers cannot be injected.

    Raises:
        UsageError: naming the first of them.
    """
    for path, module in nnx.iter_modules(pair.model):
        if isinstance(module, nnx.Dropout) and module.rate > 0:
            name = state.join(path)
            raise UsageError(f"{name} is nnx.Dropout: in train mode parity needs jaxarch.nn.Dropout there")
        if isinstance(module, nn.RReLU) and module.lower < module.upper:
            name = state.join(path)
            raise UsageError(
                f"{name} is an RReLU, whose slopes parity cannot set: compare it in eval mode only"
            )
