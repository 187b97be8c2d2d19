"""A torch state_dict into an nnx model and out of it."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import state
from jaxarch.arrays import as_numpy
from jaxarch.convert.layout import Row, layout, to_jax_layout, to_torch_layout
from jaxarch.convert.strict import differences, mismatch
from jaxarch.files import first_line


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
    problems = differences(names, [k for k in tensors if not _is_flax_counter(k, names)])
    values = {}
    for row in rows:
        if row.torch not in tensors:
            continue
        try:
            value, target = to_jax_layout(as_numpy(tensors[row.torch]), row.perm), like[row.path]
        except (TypeError, ValueError) as error:
            problems.append(f"{row.torch}: {first_line(error)}")
            continue
        if value.shape != target.shape:
            expected = to_torch_layout(np.empty(target.shape, bool), row.perm).shape
            problems.append(
                f"{row.torch} has shape {tuple(tensors[row.torch].shape)}, the model needs {expected}"
            )
        elif _kind_of(value.dtype) != _kind_of(target.dtype):
            remedy = ": multiply its block scales first" if _is_quantized(value.dtype) else ""
            problems.append(f"{row.torch} is {value.dtype}, the model needs {target.dtype}{remedy}")
        elif keep_dtype:
            values[row.path] = value
        else:
            values[row.path], problem = _cast(row.torch, value, target.dtype)
            problems += problem
    if problems:
        raise mismatch(problems)
    return values


def _is_flax_counter(key: str, names: set[str]) -> bool:
    """Whether a key is a count of batches that a model lacks: nnx.BatchNorm keeps none and computes without it."""
    owner, _, leaf = key.rpartition(".")
    return leaf == "num_batches_tracked" and f"{owner}.running_mean" in names and key not in names


def _is_quantized(dtype: np.dtype) -> bool:
    """Whether numbers of a dtype mean nothing without the scale of their block."""
    return dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.floating)


def _kind_of(dtype: np.dtype) -> str:
    """floating, integer or bool; the name of any other dtype, and of one that needs scales."""
    if _is_quantized(dtype):
        return str(dtype)
    for name, kind in (("floating", jnp.floating), ("integer", jnp.integer), ("bool", jnp.bool_)):
        if jnp.issubdtype(dtype, kind):
            return name
    return str(dtype)


def _cast(key: str, value: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, list[str]]:
    """An array in another dtype of its kind, and what is lost by that: integers and floats that do not fit."""
    if value.dtype == dtype:
        return value, []
    with np.errstate(over="ignore", invalid="ignore"):
        cast = value.astype(dtype)
    if _kind_of(dtype) == "integer":
        return cast, [] if np.array_equal(cast, value) else [f"{key} holds integers that do not fit {dtype}"]
    lost = np.isinf(cast) & np.isfinite(value) if _kind_of(dtype) == "floating" else np.False_
    return cast, [f"{key} holds numbers that do not fit {dtype}"] if lost.any() else []


def _torch_integers(value: np.ndarray) -> np.ndarray:
    """Integers as int64, which torch's buffers are; without x64 JAX's are int32."""
    return value.astype(np.int64) if np.issubdtype(value.dtype, np.integer) else value
