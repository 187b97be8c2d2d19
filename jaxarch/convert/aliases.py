"""Variables that a model holds under several paths: torch's state_dict has a key for each, nnx one leaf for all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row, leaf_of, to_jax_layout, to_torch_layout
from jaxarch.convert.tensors import Tensor
from jaxarch.errors import ConversionError
from jaxarch.state import join


def alias_rows(model: nnx.Module, rows: Sequence[Row]) -> list[Row]:
    """A row for each further path of a variable that `rows` has: its own torch key, the path of the leaf in nnx."""
    known = {row.path: row for row in rows}
    paths: dict[int, list[tuple[tuple[Any, ...], nnx.Module, nnx.Variable]]] = {}
    for path, owner, variable in _variables(model, (), frozenset()):
        paths.setdefault(id(variable), []).append((path, owner, variable))
    found = []
    for shared in paths.values():
        leaves = [join(path) for path, _, _ in shared if join(path) in known]
        for path, owner, variable in shared if leaves else ():
            if join(path) != leaves[0]:
                name, perm = leaf_of(owner, str(path[-1]), len(variable.shape))
                row = known[leaves[0]]
                found.append(Row(join((*path[:-1], name)), row.path, perm, row.trainable))
    return found


def without_aliases(
    rows: Sequence[Row], aliases: Sequence[Row], tensors: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Torch's tensors under the keys of `rows` alone: what only an alias has is taken from it.

    Raises:
        ConversionError: a tensor under an alias differs from that under the key it is tied to.
    """
    by_path, result = {row.path: row for row in rows}, dict(tensors)
    for alias in aliases:
        if alias.torch not in result:
            continue
        row = by_path[alias.path]
        value = to_torch_layout(to_jax_layout(_loaded(result.pop(alias.torch)), alias.perm), row.perm)
        tied = _loaded(result.setdefault(row.torch, value))
        if (tied.dtype, tied.shape, tied.tobytes()) != (value.dtype, value.shape, value.tobytes()):
            raise ConversionError(f"{alias.torch} differs from {row.torch}, but the model ties them")
    return result


def _variables(
    module: nnx.Module, path: tuple[Any, ...], above: frozenset[int]
) -> Iterator[tuple[tuple[Any, ...], nnx.Module, nnx.Variable]]:
    """Every variable under every path, with the module that holds it; a module within itself is visited once."""
    if id(module) in above:
        return
    for name, child in nnx.iter_children(module):
        if isinstance(child, nnx.Variable):
            yield (*path, name), module, child
        elif isinstance(child, nnx.Module):
            yield from _variables(child, (*path, name), above | {id(module)})


def _loaded(value: Any) -> np.ndarray:
    return value.read() if isinstance(value, Tensor) else as_numpy(value)
