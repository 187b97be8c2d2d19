"""Which torch key is which leaf of a model, and how its axes are permuted: derived, never written down."""

from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxarch.errors import ConversionError
from jaxarch.nn.lazy import Lazy
from jaxarch.nn.module import Module, Perm
from jaxarch.state import join

# Names of leaves in Flax's own layers, which users' models have, and torch's.
_FLAX_NAMES = {"scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


class Row(NamedTuple):
    """One leaf: torch's key, the path in the nnx module, and the permutation from torch's axes to JAX's."""

    torch: str
    path: str
    perm: Perm
    trainable: bool


def layout(model: nnx.Module) -> list[Row]:
    """The rows of a model, one for each leaf that a torch state_dict holds; random streams are omitted.

    Raises:
        ConversionError: a lazy layer has had no input yet, and so has no parameters.
    """
    owners = dict(nnx.iter_modules(model))
    for path, owner in owners.items():
        if isinstance(owner, Lazy):
            name = type(owner).__name__
            raise ConversionError(
                f"{join(path) or 'the model'} is a {name} without parameters: call the model once"
            )
    rows = []
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.RngState):
            continue
        leaf, perm = leaf_of(owners.get(path[:-1]), str(path[-1]), len(variable.shape))
        rows.append(Row(join((*path[:-1], leaf)), join(path), perm, isinstance(variable, nnx.Param)))
    return rows


def leaf_of(owner: Any, leaf: str, ndim: int) -> tuple[str, Perm]:
    """torch's name of a leaf and its permutation, chosen by the type of the layer that owns it."""
    match owner:
        case Module():
            return leaf, owner.LAYOUT.get(leaf)
        case nnx.Linear() if leaf == "kernel":
            return "weight", (1, 0)
        case nnx.Conv() if leaf == "kernel":
            return "weight", (*range(2, ndim), 1, 0)
        case nnx.ConvTranspose() if leaf == "kernel" and owner.transpose_kernel:
            return "weight", (*range(2, ndim), 1, 0)
        case nnx.Embed() | nnx.LayerNorm() | nnx.GroupNorm() | nnx.RMSNorm() | nnx.BatchNorm():
            return _FLAX_NAMES.get(leaf, leaf), None
    return leaf, None


def to_jax_layout(value: np.ndarray, perm: Perm) -> np.ndarray:
    """An array of torch's layout in JAX's."""
    return value if perm is None else value.transpose(perm)


def to_torch_layout(value: np.ndarray, perm: Perm) -> np.ndarray:
    """A copy of an array of JAX's layout in torch's, contiguous and writable as torch needs its memory."""
    return np.array(value if perm is None else value.transpose(np.argsort(perm)), order="C")
