"""A torch state_dict into an nnx model and out of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import state
from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row, layout, to_jax_layout, to_torch_layout
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
    return {
        r.torch: _torch_integers(to_torch_layout(np.asarray(flat[r.path]), r.perm))
        for r in rows
        if r.path in flat
    }


def from_torch(
    rows: Iterable[Row], tensors: Mapping[str, Any], like: Mapping[str, Any], *, keep_dtype: bool = False
) -> dict[str, np.ndarray]:
    """Torch's tensors as path -> array in JAX's layout, checked strictly against the leaves of `like`.

    Floats are cast to the dtypes of `like`; with `keep_dtype` they stay bit for bit what they were.

    Raises:
        ConversionError: names, shapes or kinds of dtypes differ.
    """
    rows = [r for r in rows if r.path in like]
    names = {r.torch for r in rows}
    check_names(names, [k for k in tensors if not _is_flax_counter(k, names)])
    mismatches, values = [], {}
    for row in rows:
        value, target = to_jax_layout(as_numpy(tensors[row.torch]), row.perm), like[row.path]
        if value.shape != target.shape:
            expected = to_torch_layout(np.empty(target.shape, bool), row.perm).shape
            mismatches.append(
                f"{row.torch} has shape {tuple(tensors[row.torch].shape)}, the model needs {expected}"
            )
        elif _kind_of(value.dtype) != _kind_of(target.dtype):
            mismatches.append(f"{row.torch} is {value.dtype}, the model needs {target.dtype}")
        else:
            values[row.path] = value if keep_dtype else _cast(row.torch, value, target.dtype)
    if mismatches:
        raise ConversionError("; ".join(mismatches))
    return values


def check_names(expected: Iterable[str], actual: Iterable[str]) -> None:
    """Compare the names of tensors.

    Raises:
        ConversionError: they differ; missing and unexpected ones are given, with the nearest of the others.
    """
    expected, actual = set(expected), set(actual)
    missing, unexpected = sorted(expected - actual), sorted(actual - expected)
    if not missing and not unexpected:
        return
    parts = []
    if missing:
        parts.append(f"missing: {', '.join(_with_nearest(k, unexpected) for k in missing)}")
    if unexpected:
        parts.append(f"unexpected: {', '.join(_with_nearest(k, expected) for k in unexpected)}")
    raise ConversionError("the keys differ; " + "; ".join(parts))


def _is_flax_counter(key: str, names: set[str]) -> bool:
    """Whether a key is a count of batches that a model lacks: nnx.BatchNorm keeps none and computes without it."""
    owner, _, leaf = key.rpartition(".")
    return leaf == "num_batches_tracked" and f"{owner}.running_mean" in names and key not in names


def _with_nearest(key: str, others: Iterable[str]) -> str:
    near = nearest(key, others, n=1)
    return f"{key} (nearest: {near[0]})" if near else key


def _kind_of(dtype: np.dtype) -> str:
    """floating, integer or bool; the name of any other dtype."""
    for name, kind in (("floating", jnp.floating), ("integer", jnp.integer), ("bool", jnp.bool_)):
        if jnp.issubdtype(dtype, kind):
            return name
    return str(dtype)


def _cast(key: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    cast = value.astype(dtype)
    if _kind_of(dtype) == "integer" and not np.array_equal(cast, value):
        raise ConversionError(f"{key} holds integers that do not fit {dtype}")
    return cast


def _torch_integers(value: np.ndarray) -> np.ndarray:
    """Integers as int64, which torch's buffers are; without x64 JAX's are int32."""
    return value.astype(np.int64) if np.issubdtype(value.dtype, np.integer) else value
