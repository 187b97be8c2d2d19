"""The state of L-BFGS between trees by path and torch's flat vectors, which the first parameter holds for all."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.errors import ConversionError
from jaxarch.optim.lbfgs import LBFGSState

# Numbers of torch's state, which are Python's.
COUNTS = ("func_evals", "n_iter")
VECTORS = ("d", "prev_flat_grad")
HISTORIES = ("old_dirs", "old_stps")


def to_torch_slots(rows: Sequence[Row], state: LBFGSState) -> dict[str, dict[str, Any]]:
    """{the first parameter's name: torch's state}; torch fills it in the first step that iterates."""
    rows = [r for r in rows if r.path in state.d]
    slots: dict[str, Any] = {k: int(getattr(state, k)) for k in COUNTS}
    if slots["n_iter"]:
        size = len(state.ro)
        order = [k % size for k in range(max(int(state.stored) - size, 0), int(state.stored))]
        slots |= {k: _flat(rows, getattr(state, k)) for k in VECTORS}
        slots |= {k: [_flat(rows, _row(getattr(state, k), i)) for i in order] for k in HISTORIES}
        slots["ro"] = [np.asarray(state.ro[i]) for i in order]
        slots |= {k: np.asarray(getattr(state, k)) for k in ("t", "H_diag")}
        slots["prev_loss"] = float(state.prev_loss)
        slots["al"] = [None] * size  # torch's buffer
    return {rows[0].torch: slots}


def from_torch_slots(
    rows: Sequence[Row], state: Mapping[str, Mapping[str, Any]], old: LBFGSState, step: int
) -> LBFGSState:
    """torch's state, of whichever parameter holds it, as ours; `old` is for shapes and dtypes.

    Raises:
        ConversionError: it is another optimizer's, of another number of elements or a longer history.
    """
    holders = [slots for slots in state.values() if slots]
    if len(holders) != 1 or not set(COUNTS) <= set(holders[0]):
        raise ConversionError("the optimizer state is not that of L-BFGS, which one parameter holds for all")
    slots = holders[0]
    counts = {k: jnp.asarray(int(slots[k]), jnp.int32) for k in COUNTS}
    new = old._replace(count=jnp.asarray(step, jnp.int32), **counts)
    if not slots["n_iter"]:
        return new
    stored, size = len(slots["ro"]), len(old.ro)
    if stored > size:
        raise ConversionError(f"the optimizer's history has {stored} pairs, history_size is {size}")
    vectors: dict[str, Any] = {k: _tree(rows, slots[k], old.d) for k in VECTORS}
    histories: dict[str, Any] = {}
    for name in HISTORIES:
        trees = [_tree(rows, v, old.d) for v in slots[name]]
        histories[name] = {
            path: jnp.stack([t[path] for t in trees] + [jnp.zeros_like(x[0])] * (size - stored))
            for path, x in getattr(old, name).items()
        }
    ro = np.zeros(size)
    ro[:stored] = [float(v) for v in slots["ro"]]
    numbers = {k: jnp.asarray(float(slots[k]), old.t.dtype) for k in ("t", "H_diag", "prev_loss")}
    return new._replace(
        stored=jnp.asarray(stored, jnp.int32),
        ro=jnp.asarray(ro, old.ro.dtype),
        **vectors,
        **histories,
        **numbers,
    )


def _row(tree: Mapping[str, jax.Array], i: int) -> dict[str, jax.Array]:
    return {path: x[i] for path, x in tree.items()}


def _flat(rows: Sequence[Row], tree: Mapping[str, Any]) -> np.ndarray:
    """A tree as torch's vector: the parameters in torch's order, each in torch's layout."""
    return np.concatenate([to_torch([r], tree)[r.torch].ravel() for r in rows])


def _tree(rows: Sequence[Row], vector: Any, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    vector = as_numpy(vector)
    if vector.size != (total := sum(like[r.path].size for r in rows)):
        raise ConversionError(f"the optimizer's vectors have {vector.size:,} numbers, the model {total:,}")
    tensors, first = {}, 0
    for row in rows:
        shape = to_torch([row], {row.path: np.zeros(like[row.path].shape, bool)})[row.torch].shape
        size = like[row.path].size
        tensors[row.torch] = vector[first : first + size].reshape(shape)
        first += size
    return {k: jnp.asarray(v) for k, v in from_torch(rows, tensors, like).items()}
