"""The names that safetensors gives to dtypes, and weights in blocks with a scale each as plain numbers.

A dtype of few bits is carried bit for bit, never cast: its numbers mean nothing without their scales. `dequantize`
multiplies them where a user asks for it.
"""

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from jaxarch.arrays import CARRIED, FLOAT4, SUB_BYTE, unpack
from jaxarch.errors import ConversionError, printable

SAFETENSORS: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F6_E2M3": ml_dtypes.float6_e2m3fn,
        "F6_E3M2": ml_dtypes.float6_e3m2fn,
        "F4": ml_dtypes.float4_e2m1fn,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}
# Further ones that other formats hold, under the names of numpy and torch.
DTYPES: Mapping[str, np.dtype] = {**SAFETENSORS, "complex128": np.dtype(np.complex128), **CARRIED}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def safetensors_dtype(name: str) -> np.dtype:
    """numpy's dtype of a safetensors dtype such as BF16.

    Raises:
        ConversionError: an unknown one.
    """
    if name not in SAFETENSORS:
        raise ConversionError(f"unknown dtype {name!r}; known: {', '.join(SAFETENSORS)}")
    return SAFETENSORS[name]


def dtype_name(dtype: np.dtype) -> str:
    """The name of a numpy dtype, that of safetensors where it has one.

    Raises:
        ConversionError: no format holds it.
    """
    if dtype not in _NAMES:
        raise ConversionError(f"numbers of dtype {printable(dtype)} cannot be stored")
    return _NAMES[dtype]


def safetensors_name(dtype: np.dtype) -> str:
    """The name of a numpy dtype in safetensors.

    Raises:
        ConversionError: safetensors has no such dtype.
    """
    if (name := dtype_name(dtype)) not in SAFETENSORS:
        raise ConversionError(f"safetensors has no dtype {name}")
    return name


def stored_bytes(dtype: np.dtype, count: int) -> int:
    """The bytes that `count` numbers of a dtype take in a safetensors file, packed where they are less than a byte.

    Raises:
        ConversionError: they do not fill the last byte.
    """
    bits = count * SUB_BYTE.get(dtype, 8 * dtype.itemsize)
    if bits % 8:
        raise ConversionError(f"{count} numbers of {SUB_BYTE[dtype]} bits do not fill a byte")
    return bits // 8


def dequantize(
    values: np.ndarray,
    scales: np.ndarray,
    dtype: np.dtype | type = np.float32,
    *,
    block: Sequence[int] | None = None,
) -> np.ndarray:
    """Numbers times the scale of their block, in `dtype`; the product is computed in float32.

    DeepSeek-V3's blocks are 128 x 128 (`weight_scale_inv`, which multiplies too), those of MXFP4 1 x 32 with
    scales of F8_E8M0, those of NVFP4 1 x 16 with scales of F8_E4M3 and one more for the whole tensor.

    Args:
        values: of any shape, of a dtype of 8 bits or fewer.
        scales: one for each block, with as many dimensions as `values`; or 0-d, one for all.
        block: the sizes of a block, where the last one of an axis may be cut off; default: all are equal.

    Raises:
        ConversionError: the scales do not divide the values into blocks or are not finite, or the numbers do
            not fit `dtype`.
    """
    if values.dtype.itemsize > 1:
        raise ConversionError(f"{values.dtype} numbers are not quantized")
    wide = scales.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ConversionError("a scale is not finite")
    if wide.ndim:
        sizes = block or [-(-n // max(m, 1)) for n, m in zip(values.shape, wide.shape, strict=False)]
        blocks = tuple(-(-n // b) for n, b in zip(values.shape, sizes, strict=False))
        uneven = block is None and any(n % b for n, b in zip(values.shape, sizes, strict=False) if b)
        if wide.ndim != values.ndim or wide.shape != blocks or uneven:
            raise ConversionError(f"scales of shape {wide.shape} do not fit values of shape {values.shape}")
        for axis, (size, length) in enumerate(zip(values.shape, sizes, strict=True)):
            wide = np.repeat(wide, length, axis).take(np.arange(size), axis)
    return _narrowed(values.astype(np.float32) * wide, np.dtype(dtype))


def dequantize_mxfp4(
    blocks: np.ndarray, scales: np.ndarray, dtype: np.dtype | type = np.float32
) -> np.ndarray:
    """MXFP4 stored as bytes, as in gpt-oss: (..., G, 16) of two numbers each and (..., G) exponents -> (..., 32 G).

    Raises:
        ConversionError: other shapes or dtypes, or numbers that do not fit `dtype`.
    """
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.shape != (*scales.shape, 16):
        raise ConversionError(f"blocks of {blocks.shape} and scales of {scales.shape} are no MXFP4 bytes")
    values = unpack(blocks, FLOAT4, (*scales.shape, 32))
    wide = dequantize(values, scales.view(ml_dtypes.float8_e8m0fnu)[..., None], dtype)
    return wide.reshape(*scales.shape[:-1], -1)


def _narrowed(wide: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = wide.astype(dtype)
    if not np.array_equal(np.isinf(result), np.isinf(wide)):
        raise ConversionError(f"the numbers do not fit {dtype}")
    return result
