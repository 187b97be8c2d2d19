"""Conversion between arrays of numpy and JAX and tensors of torch, bit for bit."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

# torch's dtypes whose arrays numpy gets from ml_dtypes, by their bits.
EXTENDED: Mapping[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}
# Two numbers of four bits in a byte for torch, one in a byte for numpy.
FLOAT4, FLOAT4_PAIRS = np.dtype(ml_dtypes.float4_e2m1fn), "float4_e2m1fn_x2"
# torch's dtypes that numpy has no numbers for: bytes under the dtype's name.
CARRIED: Mapping[str, np.dtype] = {
    name: np.dtype([(name, f"V{size}")])
    for name, size in {
        "complex32": 4,
        "bits16": 2,
        "bits8": 1,
        "bits4x2": 1,
        "bits2x4": 1,
        "bits1x8": 1,
    }.items()
}
# Numbers of fewer bits than a byte, which files pack; numpy gives each a byte.
SUB_BYTE: Mapping[np.dtype, int] = {
    FLOAT4: 4,
    np.dtype(ml_dtypes.float6_e2m3fn): 6,
    np.dtype(ml_dtypes.float6_e3m2fn): 6,
}


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor or an array as numpy; what `.numpy()` does not know, as bfloat16, by its bits.

    Numbers of four bits, two in a byte for torch, become one in a byte: (..., n) -> (..., 2 n).

    Raises:
        TypeError: the tensor is sparse, quantized, nested or without values.
    """
    if type(value).__module__.split(".")[0] != "torch":
        return np.asarray(value)
    if str(value.layout) != "torch.strided" or value.is_quantized or value.is_nested or value.is_meta:
        raise TypeError("a sparse, quantized, nested or meta tensor: save a plain dense one")
    value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    if name == FLOAT4_PAIRS:
        if not value.ndim:
            raise TypeError("a 0-d tensor of two numbers of four bits")
        packed = _bits_of(value)
        return unpack(packed, FLOAT4, (*packed.shape[:-1], 2 * packed.shape[-1]))
    held = EXTENDED.get(name, CARRIED.get(name))
    return value.numpy() if held is None else _bits_of(value).view(held)


def as_tensor(value: np.ndarray) -> Any:
    """A numpy array as a torch tensor of the same bits, on the CPU.

    Raises:
        TypeError: torch has no such dtype, or numbers of four bits in rows of odd length.
    """
    import torch

    value = np.array(value, order="C")  # torch must own writable memory
    if value.dtype == FLOAT4:
        if value.ndim == 0 or value.shape[-1] % 2:
            raise TypeError(f"torch packs two {value.dtype} into a byte: the last size must be even")
        packed = pack(value).reshape(*value.shape[:-1], value.shape[-1] // 2)
        return torch.from_numpy(packed).view(torch.float4_e2m1fn_x2)
    for name, dtype in (*EXTENDED.items(), *CARRIED.items()):
        if value.dtype == dtype:
            bits = value.view(f"i{dtype.itemsize}")
            return torch.from_numpy(bits).view(getattr(torch, name))
    return torch.from_numpy(value)


def pack(value: np.ndarray) -> np.ndarray:
    """Numbers of 4 or 6 bits, one in a byte, as a row of bytes without gaps, the first in the lowest bits.

    Raises:
        ValueError: they do not fill the last byte.
    """
    bits = SUB_BYTE[value.dtype]
    if value.size * bits % 8:
        raise ValueError(f"{value.size} numbers of {bits} bits do not fill a byte")
    codes = value.reshape(-1).view(np.uint8)
    if bits == 4:
        return codes[0::2] | codes[1::2] << 4
    a, b, c, d = codes.reshape(-1, 4).T
    return np.stack((a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2), 1).reshape(-1)


def unpack(packed: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`: bytes as an array of `shape` of numbers, each in a byte of its own."""
    if SUB_BYTE[dtype] == 4:
        codes = np.stack((packed & 15, packed >> 4), -1)
    else:
        a, b, c = packed.reshape(-1, 3).T
        codes = np.stack((a & 63, a >> 6 | (b & 15) << 2, b >> 4 | (c & 3) << 4, c >> 2), -1)
    return codes.reshape(shape).view(dtype)


def _bits_of(value: Any) -> np.ndarray:
    """A tensor's bits as integers of its width."""
    import torch

    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[value.element_size()]
    return value.view(width).numpy()
