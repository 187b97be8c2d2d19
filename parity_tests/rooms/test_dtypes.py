"""Every dtype of torch and safetensors passes through numpy bit for bit; block scales are applied on request only."""

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import numpy as safe

from jaxarch.arrays import (
    CARRIED,
    EXTENDED,
    FLOAT4,
    FLOAT4_PAIRS,
    SUB_BYTE,
    as_numpy,
    as_tensor,
    pack,
    unpack,
)
from jaxarch.convert.dtypes import (
    SAFETENSORS,
    dequantize,
    dequantize_mxfp4,
    safetensors_dtype,
    safetensors_name,
    stored_bytes,
)
from jaxarch.errors import ConversionError

OWN = (
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
)
TORCH = (*OWN, "bool", "complex64", "complex128", *EXTENDED, *CARRIED, FLOAT4_PAIRS)


def every_bit(name, *shape) -> torch.Tensor:
    """A tensor of random bits, NaNs and infinities among them; its last size is in bytes."""
    dtype, raw = getattr(torch, name), torch.randint(0, 256, shape, dtype=torch.uint8)
    return raw > 127 if dtype == torch.bool else raw.view(dtype)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", TORCH)
def test_torch_and_back_is_bitwise(name):
    tensor = every_bit(name, 3, 32)
    for value in (
        tensor,
        tensor[:0],
        tensor[1],
        tensor[:, ::2],
        *([] if name == FLOAT4_PAIRS else [tensor[0, 0]]),
    ):
        held = as_numpy(value)
        again = as_tensor(held)
        assert (again.dtype, again.shape) == (value.dtype, value.shape)
        assert again.numel() == 0 or torch.equal(
            again.reshape(-1).view(torch.uint8), value.contiguous().reshape(-1).view(torch.uint8)
        )
        assert held.size == value.numel() * (2 if name == FLOAT4_PAIRS else 1)


@pytest.mark.parametrize("dtype", SUB_BYTE, ids=str)
def test_numbers_below_a_byte_are_packed(dtype):
    bits = SUB_BYTE[dtype]
    codes = np.random.default_rng(0).integers(0, 2**bits, (5, 8), np.uint8)
    packed = pack(codes.view(dtype))
    expected = np.packbits(np.unpackbits(codes[..., None], -1, bits, bitorder="little"), bitorder="little")
    assert packed.tobytes() == expected.tobytes()
    assert len(packed) == stored_bytes(dtype, codes.size)
    assert unpack(packed, dtype, codes.shape).tobytes() == codes.tobytes()
    with pytest.raises(ConversionError, match="do not fill a byte"):
        stored_bytes(dtype, 3)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_names_of_safetensors(name):
    assert safetensors_name(safetensors_dtype(name)) == name
    values = np.zeros(8, safetensors_dtype(name))
    stored = pack(values) if values.dtype in SUB_BYTE else values
    assert stored.nbytes == stored_bytes(values.dtype, 8)
    if values.dtype not in SUB_BYTE:  # safetensors writes these names itself
        assert f'"dtype":"{name}"'.encode() in safe.save({"a": values})


def test_an_unknown_dtype_is_named():
    with pytest.raises(ConversionError, match="unknown dtype 'F3'; known: F64"):
        safetensors_dtype("F3")
    with pytest.raises(ConversionError, match="has no dtype complex32"):
        safetensors_name(CARRIED["complex32"])


def test_blocks_are_scaled():
    values = np.random.default_rng(0).normal(size=(5, 6)).astype(ml_dtypes.float8_e4m3fn)
    scales = np.float32([[1, 2], [3, 4], [5, 6]])
    expected = values.astype(np.float32) * np.repeat(np.repeat(scales, 2, 0), 3, 1)[:5]
    np.testing.assert_array_equal(dequantize(values, scales, block=(2, 3)), expected)
    np.testing.assert_array_equal(dequantize(values, np.float32(3)), values.astype(np.float32) * 3)
    for wrong in (scales.T, scales[0], scales[:0], scales[:, :1]):
        with pytest.raises(ConversionError, match="do not fit"):
            dequantize(values, wrong, block=(2, 3))
    with pytest.raises(ConversionError, match="do not fit"):
        dequantize(values, scales)  # five rows are not three equal blocks
    with pytest.raises(ConversionError, match="not finite"):
        dequantize(values, np.float32(np.nan))
    with pytest.raises(ConversionError, match="fit float16"):
        dequantize(values, np.float32(1e6), np.float16)
    with pytest.raises(ConversionError, match="not quantized"):
        dequantize(values.astype(np.float32), np.float32(1))


def test_mxfp4_is_that_of_transformers():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (2, 3, 4, 16), np.uint8)
    scales = generator.integers(120, 135, (2, 3, 4), np.uint8)
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    ours = dequantize_mxfp4(blocks, scales)
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2).numpy())
    np.testing.assert_array_equal(
        unpack(blocks, FLOAT4, (2, 3, 4, 32))[..., 0].view(np.uint8), blocks[..., 0] & 15
    )
    with pytest.raises(ConversionError, match="no MXFP4 bytes"):
        dequantize_mxfp4(blocks, scales[:1])
