"""Casts of floats to another dtype: rounded to the nearest, ties to even; what does not fit is an error."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

from jaxarch.convert.tensors import Tensor
from jaxarch.errors import ConversionError, printable

# What a user may ask for; and the dtypes that are cast, as safetensors names them.
DTYPES: Mapping[str, np.dtype] = {
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}
FLOATS = ("F64", "F32", "F16", "BF16")


def narrowed(value: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """An array of floats in another dtype, to the nearest, ties to even. Infinities and NaN stay what they are.

    Raises:
        ConversionError: a finite number becomes infinite.
    """
    if value.dtype == dtype:
        return value
    with np.errstate(over="ignore", invalid="ignore"):
        result = value.astype(dtype)
    lost = np.isfinite(value) & ~np.isfinite(result)
    if lost.any():
        largest = float(np.abs(value[lost].astype(np.float64)).max())
        raise ConversionError(f"{printable(name)} holds {largest:.4g}, which {dtype} cannot: keep its dtype")
    return result


def cast(name: str, tensor: Tensor, dtype: np.dtype) -> Tensor:
    """A tensor of floats in another dtype, cast as it is read; other tensors, fp8 among them, stay as they are."""
    if tensor.info.dtype not in FLOATS or tensor.dtype == dtype:
        return tensor
    return tensor.map(dtype, lambda value: narrowed(value, dtype, name))
