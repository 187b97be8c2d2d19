"""A torch state_dict into an nnx model and out of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import state
from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row, layout, to_ours, to_theirs
from jaxarch.errors import ConversionError, nearest


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Set every weight and buffer of `model` from torch's names and layouts; nothing changes on an error.

    Args:
        model: any nnx module, with `jaxarch.nn` or Flax's own layers.
        state_dict: torch tensors or numpy arrays by torch's keys. Floats are cast to the model's dtype.

    Raises:
        ConversionError: keys are missing or unexpected (the nearest names are given), or a shape or kind
            of dtype differs.
    """
    values = from_torch(layout(model), state_dict, state.flat(nnx.state(model)))
    state.update(model, {path: jnp.asarray(value) for path, value in values.items()})


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every weight and buffer of `model` as numpy arrays by torch's keys, in torch's layout."""
    return to_torch(layout(model), state.flat(nnx.state(model)))


def to_torch(rows: Iterable[Row], flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of `flat` (path -> array: weights, gradients, moments) under torch's keys and layout."""
    return {r.torch: _widen(to_theirs(np.asarray(flat[r.path]), r.perm)) for r in rows if r.path in flat}


def from_torch(
    rows: Iterable[Row], tensors: Mapping[str, Any], like: Mapping[str, Any], *, keep_dtype: bool = False
) -> dict[str, np.ndarray]:
    """Torch's tensors as path -> array in our layout, checked strictly against the leaves of `like`.

    Floats are cast to the dtypes of `like`; with `keep_dtype` they stay bit for bit what they were.
    """
    rows = [r for r in rows if r.path in like]
    names = {r.torch for r in rows}
    check_names(names, [k for k in tensors if not _counter_flax_lacks(k, names)])
    wrong, values = [], {}
    for row in rows:
        value, target = to_ours(as_numpy(tensors[row.torch]), row.perm), like[row.path]
        if value.shape != target.shape:
            want = to_theirs(np.empty(target.shape, bool), row.perm).shape
            wrong.append(f"{row.torch} has shape {tuple(tensors[row.torch].shape)}, the model needs {want}")
        elif _kind(value.dtype) != _kind(target.dtype):
            wrong.append(f"{row.torch} is {value.dtype}, the model needs {target.dtype}")
        else:
            values[row.path] = value if keep_dtype else _cast(row.torch, value, target.dtype)
    if wrong:
        raise ConversionError("; ".join(wrong))
    return values


def check_names(needed: Iterable[str], given: Iterable[str]) -> None:
    """Raise a ConversionError unless both hold the same names."""
    needed, given = set(needed), set(given)
    missing, unexpected = sorted(needed - given), sorted(given - needed)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"missing: {', '.join(_hinted(k, unexpected) for k in missing)}")
    if unexpected:
        parts.append(f"unexpected: {', '.join(_hinted(k, needed) for k in unexpected)}")
    raise ConversionError("the keys differ; " + "; ".join(parts))


def _counter_flax_lacks(key: str, names: set[str]) -> bool:
    """nnx.BatchNorm keeps no count of batches, and nothing it computes depends on one."""
    owner, _, leaf = key.rpartition(".")
    return leaf == "num_batches_tracked" and f"{owner}.running_mean" in names and key not in names


def _hinted(key: str, others: Iterable[str]) -> str:
    near = nearest(key, others, n=1)
    return f"{key} (nearest: {near[0]})" if near else key


def _kind(dtype) -> str:
    for name, kind in (("floating", jnp.floating), ("integer", jnp.integer), ("bool", jnp.bool_)):
        if jnp.issubdtype(dtype, kind):
            return name
    return str(dtype)


def _cast(key: str, value: np.ndarray, dtype) -> np.ndarray:
    cast = value.astype(dtype)
    if _kind(dtype) == "integer" and not np.array_equal(cast, value):
        raise ConversionError(f"{key} holds integers that do not fit {dtype}")
    return cast


def _widen(value: np.ndarray) -> np.ndarray:
    """Torch's integer buffers are int64; without x64 ours are int32."""
    return value.astype(np.int64) if np.issubdtype(value.dtype, np.integer) else value
