"""Which torch key is which leaf, and how its axes are permuted: derived from a model, never written down."""

from typing import NamedTuple

import numpy as np
from flax import nnx

from jaxarch.nn.module import Module, Perm
from jaxarch.state import join

# What Flax's own layers, in users' models, call torch's leaves.
_FLAX_NAMES = {"scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


class Row(NamedTuple):
    """One leaf: torch's key, our path, and the permutation that turns torch's array into ours."""

    torch: str
    path: str
    perm: Perm
    trainable: bool


def layout(model: nnx.Module) -> list[Row]:
    """The rows of a model, one for each leaf that a torch state_dict holds; random streams are left out."""
    owners = dict(nnx.iter_modules(model))
    rows = []
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if isinstance(variable, nnx.RngState):
            continue
        leaf, perm = _leaf(owners.get(path[:-1]), str(path[-1]), len(variable.shape))
        rows.append(Row(join((*path[:-1], leaf)), join(path), perm, isinstance(variable, nnx.Param)))
    return rows


def _leaf(owner, leaf: str, ndim: int) -> tuple[str, Perm]:
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


def to_ours(value: np.ndarray, perm: Perm) -> np.ndarray:
    """An array of torch's layout in ours."""
    return value if perm is None else value.transpose(perm)


def to_theirs(value: np.ndarray, perm: Perm) -> np.ndarray:
    """A copy, contiguous and writable as torch wants its memory, of an array of ours in torch's layout."""
    return np.array(value if perm is None else value.transpose(np.argsort(perm)), order="C")
