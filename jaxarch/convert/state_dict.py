"""A torch state_dict into an nnx model and out of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import state
from jaxarch.arrays import as_numpy
from jaxarch.convert.aliases import alias_rows, without_aliases
from jaxarch.convert.layout import Row, layout, to_torch_layout
from jaxarch.convert.placement import place
from jaxarch.convert.strict import differences, mismatch
from jaxarch.convert.tensors import Tensor
from jaxarch.files import first_line


def load_state_dict(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Set every weight and buffer of `model` from torch's names and layouts; nothing changes on an error.

    Args:
        model: any nnx module, with `jaxarch.nn` or Flax's own layers.
        state_dict: torch tensors, numpy arrays or `Tensor`s that are not loaded, by torch's keys. Floats are cast to
            the model's dtype. Arrays keep their shardings. Of a variable that the model holds under several paths one
            key is enough; several must agree.

    Raises:
        ConversionError: keys are missing or unexpected (the nearest names are given), or a shape or kind
            of dtype differs.

    Example:
        >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        >>> load_state_dict(model, torch.nn.Linear(4, 3).state_dict())
    """
    rows = layout(model)
    tensors = without_aliases(rows, alias_rows(model, rows), state_dict)
    state.update(model, placed(rows, tensors, state.flat(nnx.state(model))))


def to_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every weight and buffer of `model` as numpy arrays by torch's keys, in torch's layout.

    Without x64 JAX has no integers of 64 bits: there those of 32 bits become torch's default, int64.

    Example:
        >>> tensors = {k: torch.from_numpy(v) for k, v in to_state_dict(model).items()}
        >>> torch_model.load_state_dict(tensors, strict=True)
    """
    rows = layout(model)
    arrays = to_torch([*rows, *alias_rows(model, rows)], state.flat(nnx.state(model)))
    if jax.config.read("jax_enable_x64"):
        return arrays
    return {k: v.astype(np.int64) if v.dtype == np.int32 else v for k, v in arrays.items()}


def to_torch(rows: Iterable[Row], flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of `flat` (path -> array: weights, gradients, moments) under torch's keys and layout."""
    return {r.torch: to_torch_layout(np.asarray(flat[r.path]), r.perm) for r in rows if r.path in flat}


def to_torch_tensors(rows: Iterable[Row], flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `to_torch`, of tensors that are not loaded."""
    return {
        r.torch: flat[r.path].permute(None if r.perm is None else tuple(np.argsort(r.perm)))
        for r in rows
        if r.path in flat
    }


def from_torch(
    rows: Iterable[Row], tensors: Mapping[str, Any], like: Mapping[str, Any], *, keep_dtype: bool = False
) -> dict[str, np.ndarray]:
    """Torch's tensors as path -> array in JAX's layout, checked strictly against the leaves of `like`.

    Floats are cast to the dtypes of `like`; with `keep_dtype` they stay bit for bit what they were.

    Raises:
        ConversionError: names, shapes or kinds of dtypes differ, or numbers do not fit.
    """
    values: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for path, tensor in fitted(rows, tensors, like).items():
        target = tensor.dtype if keep_dtype else like[path].dtype
        values[path], lost = cast(path, tensor.read(), target)
        problems += lost
    if problems:
        raise mismatch(problems)
    return values


def fitted(rows: Iterable[Row], tensors: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Torch's tensors as path -> tensor in JAX's layout; nothing is read, and dtypes stay as they are.

    Raises:
        ConversionError: names, shapes or kinds of dtypes differ from the leaves of `like`.
    """
    rows = [r for r in rows if r.path in like]
    names = {r.torch for r in rows}
    problems = differences(names, [k for k in tensors if not _is_flax_counter(k, names)])
    values = {}
    for row in rows:
        if row.torch not in tensors:
            continue
        try:
            tensor, target = _tensor(tensors[row.torch]), like[row.path]
            value = tensor.permute(row.perm)
        except (TypeError, ValueError) as error:
            problems.append(f"{row.torch}: {first_line(error)}")
            continue
        if value.shape != target.shape:
            expected = tuple(
                target.shape if row.perm is None else (target.shape[i] for i in np.argsort(row.perm))
            )
            problems.append(f"{row.torch} has shape {tensor.shape}, the model needs {expected}")
        elif _kind_of(value.dtype) != _kind_of(target.dtype):
            remedy = ": multiply its block scales first" if _is_quantized(value.dtype) else ""
            problems.append(f"{row.torch} is {value.dtype}, the model needs {target.dtype}{remedy}")
        else:
            values[row.path] = value
    if problems:
        raise mismatch(problems)
    return values


def placed(rows: Iterable[Row], tensors: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Torch's tensors as path -> array in JAX's layout, in the dtypes and with the shardings of the leaves of `like`.

    Each device is given its own part, of which alone the bytes are read where `tensors` are not loaded.

    Args:
        like: arrays, or abstract ones that may have a sharding.

    Raises:
        ConversionError: names, shapes or kinds of dtypes differ, or numbers do not fit.
    """
    problems: list[str] = []

    def fitting(path: str) -> Callable[[np.ndarray], np.ndarray]:
        def function(value: np.ndarray) -> np.ndarray:
            result, lost = cast(path, value, like[path].dtype)
            problems.extend(lost)
            return result

        return function

    values = {}
    for path, tensor in fitted(rows, tensors, like).items():
        leaf, tensor = like[path], tensor.map(like[path].dtype, fitting(path))
        is_placed = leaf.committed if isinstance(leaf, jax.Array) else leaf.sharding is not None
        values[path] = place(tensor, leaf.sharding) if is_placed else jnp.asarray(tensor.read())
    if problems:
        raise mismatch(sorted(set(problems)))
    return values


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else Tensor.of(as_numpy(value))


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


def cast(key: str, value: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, list[str]]:
    """An array in another dtype of its kind, and what is lost by that: integers and floats that do not fit."""
    if value.dtype == dtype:
        return value, []
    with np.errstate(over="ignore", invalid="ignore"):
        result = value.astype(dtype)
    if _kind_of(dtype) == "integer":
        return result, [] if np.array_equal(result, value) else [
            f"{key} holds integers that do not fit {dtype}"
        ]
    lost = np.isinf(result) & np.isfinite(value) if _kind_of(dtype) == "floating" else np.False_
    return result, [f"{key} holds numbers that do not fit {dtype}"] if lost.any() else []
