"""Every format of weights: read by slices bit for bit as its own library reads it, with a line for what is left out."""

import argparse
import os
import subprocess
import sys

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from jaxarch.arrays import CARRIED, EXTENDED, FLOAT4_PAIRS, as_numpy
from jaxarch.convert.dtypes import DTYPES, SAFETENSORS
from jaxarch.convert.extents import read_strided
from jaxarch.convert.files import create_tensors, open_tensors, read_tensors, write_tensors
from jaxarch.convert.msgpack_file import MsgpackReader
from jaxarch.convert.tensors import TensorInfo
from jaxarch.convert.torch_reader import TorchReader
from jaxarch.errors import ConversionError

WRITABLE = {
    ".safetensors": set(SAFETENSORS),
    ".npz": set(DTYPES),
    ".pt": set(DTYPES) - {"F6_E2M3", "F6_E3M2"},
}


def bits(dtype: np.dtype, *shape: int) -> np.ndarray:
    """Random bits of a dtype, NaNs among them."""
    generator = np.random.default_rng(len(shape))
    if dtype == np.bool_:
        return generator.random(shape) > 0.5
    if str(dtype).startswith(("float4", "float6")):
        codes = generator.integers(0, 16, shape, np.uint8)
        return codes.view(dtype)
    raw = generator.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype).reshape(shape)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def tensors() -> dict:
    """Tensors of every layout that torch can save: strided, expanded, shared, empty, lazily conjugate."""
    torch.manual_seed(0)
    base, numbers = torch.randn(7, 9, dtype=torch.float64), torch.randn(4, 6, dtype=torch.complex64)
    held = {
        "whole": base,
        "transposed": base.T,
        "strided": base[1:4, ::2],
        "expanded": torch.randn(3).expand(4, 3),
        "windows": torch.arange(10.0).unfold(0, 4, 1),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "conjugate": numbers.conj(),
        "negative": torch.randn(4, 6, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "frozen": torch.nn.Parameter(torch.randn(4), requires_grad=False),
        "attributes": torch.nn.Parameter(torch.randn(4)),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    setattr(held["attributes"], "mark", "x")  # noqa: B010
    for name in (*EXTENDED, *CARRIED, FLOAT4_PAIRS, "uint16", "uint32", "uint64", "int8", "int16", "float16"):
        held[name] = torch.randint(0, 256, (3, 16), dtype=torch.uint8).view(getattr(torch, name))
    return held


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.filterwarnings("ignore:Failed to initialize NumPy")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, is_zip, protocol):
    path, held = tmp_path / "a.pt", tensors()
    torch.save(held, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    with TorchReader(path) as reader:
        assert list(reader.infos) == list(held)
        assert not reader.notes
        for name, tensor in held.items():
            expected, info = as_numpy(tensor), reader.infos[name]
            assert (info.numpy, info.shape) == (expected.dtype, expected.shape), name
            assert same(reader.read(name), expected), name
            index = tuple(slice(n // 3, n - n // 4) for n in expected.shape)
            assert same(reader.read(name, index), np.array(expected[index], order="C")), name


def test_big_endian_files_are_turned(tmp_path):
    # No torch here writes them: the record that says so is planted.
    held = {"a": torch.randn(3, 4), "b": torch.randn(5, dtype=torch.complex64), "c": torch.arange(4)}
    swapped = {
        "a": held["a"].numpy().byteswap(),
        "b": held["b"].numpy().byteswap(),
        "c": held["c"].numpy().byteswap(),
    }
    torch.save({k: torch.from_numpy(v) for k, v in swapped.items()}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    assert data.count(b"little") == 1
    (tmp_path / "a.pt").write_bytes(data.replace(b"little", b"big\x00\x00\x00"))
    with pytest.raises(ConversionError, match="unknown byte order"):
        read_tensors(tmp_path / "a.pt")
    torch.save(
        {k: torch.from_numpy(v) for k, v in swapped.items()},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=False,
    )
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    for name, value in read_tensors(tmp_path / "a.pt").items():
        assert same(value, held[name].numpy()), name


NESTED = {
    "state_dict": {"state_dict": {"a": 1}},
    "model": {"model": {"a": 1}, "optimizer": {"state": {0: {"m": 1}}}, "epoch": 3},
    "model.module": {"model": {"module": {"a": 1}}, "args": argparse.Namespace(x=1)},
    "net": {"net": {"a": 1}, "ema": {"a": 1}},
    "ema": {"ema": {"a": 1}, "ema_updates": 7},
    "model_state": {"model_state": {"a": 1}, "betas": [1.0, 2.0], "name": "x"},
    "": {"a": 1},
}


@pytest.mark.parametrize("taken", NESTED)
def test_wrappers_are_opened_and_named(tmp_path, taken):
    def filled(value):
        if isinstance(value, dict):
            return {k: filled(v) for k, v in value.items()}
        return torch.arange(3.0) if value == 1 else value

    torch.save(filled(NESTED[taken]), tmp_path / "a.ckpt")
    with open_tensors(tmp_path / "a.ckpt") as reader:
        assert list(reader.infos) == ["a"]
        first = f"the weights are those under {taken!r}"
        assert (first in reader.notes) == bool(taken)
        others = set(NESTED[taken]) - {taken.split(".")[0]} - {"a"}
        for key in others:
            assert key in reader.metadata or any(f"left out: {key!r} (" in n for n in reader.notes), key


def test_a_part_is_taken_by_name(tmp_path):
    content = {"model": {"a": torch.zeros(2)}, "ema": {"shadow": {"a": torch.ones(2)}}}
    torch.save(content, tmp_path / "a.pt")
    with TorchReader(tmp_path / "a.pt", "ema.shadow") as reader:
        assert same(reader.read("a"), np.ones(2, np.float32))
        assert "left out: 'model' (tensors: 1)" in reader.notes
    with pytest.raises(ConversionError, match="has no part 'emma'; it holds model, ema"):
        TorchReader(tmp_path / "a.pt", "emma")


def test_parts_side_by_side_are_joined(tmp_path):
    content = {"encoder": {"w": torch.zeros(2)}, "decoder": {"w": torch.ones(2), "step": 4}, "note": None}
    torch.save(content, tmp_path / "a.pt")
    with open_tensors(tmp_path / "a.pt") as reader:
        assert list(reader.infos) == ["encoder.w", "decoder.w"]
        assert reader.metadata == {"decoder.step": "4"}
        assert reader.notes == ["left out: 'note' (a NoneType)"]


def test_torch_files_are_read_without_torch(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt")
    code = (
        "import sys; sys.modules['torch'] = None; from jaxarch.convert.files import read_tensors;"
        f"print(read_tensors({str(tmp_path / 'a.pt')!r})['a'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[0.0, 1.0, 2.0]\n"


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_in_every_format(tmp_path, suffix, name):
    path = tmp_path / f"a{suffix}"
    held = {k: bits(DTYPES[name], *s) for k, s in {"x": (4, 8), "y.z": (8,), "e": (0, 8)}.items()}
    if name not in WRITABLE[suffix]:
        with pytest.raises((ConversionError, TypeError)):
            write_tensors(path, held)
        assert not path.exists()
        return
    write_tensors(path, held)
    again = read_tensors(path)
    assert again.keys() == held.keys()
    assert all(same(again[k], v) for k, v in held.items())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy(tmp_path, save):
    generator = np.random.default_rng(0)
    held = {
        "a": generator.normal(size=(5, 7)),
        "fortran": np.asfortranarray(generator.normal(size=(4, 6))),
        "big": generator.normal(size=3).astype(">f4"),
        "scalar": np.int64(2**40 + 7),
        "params/Dense_0/kernel": np.ones((2, 3), ml_dtypes.bfloat16),
    }
    save(tmp_path / "a.npz", **held, text=np.array("hello"))
    with open_tensors(tmp_path / "a.npz") as reader:
        assert set(reader.infos) == set(held)
        for name, value in held.items():
            expected = np.array(value, order="C")
            expected = expected.astype(expected.dtype.newbyteorder("="))
            assert same(reader.read(name), expected), name
            index = tuple(slice(1, 3) for _ in expected.shape)
            assert same(reader.read(name, index), np.array(expected[index], order="C")), name
        assert reader.notes == [
            "'params/Dense_0/kernel' has no dtype: read as bfloat16, which numpy stores so",
            "left out: 'text' (<U5)",
        ]


def test_npz_is_read_by_numpy_and_keeps_texts(tmp_path):
    held = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(4)}
    write_tensors(tmp_path / "a.npz", held, {"format": "pt", "é": "ü\n"})
    with np.load(tmp_path / "a.npz") as theirs:
        assert all(same(theirs[k], np.asarray(v)) for k, v in held.items())
    with open_tensors(tmp_path / "a.npz") as reader:
        assert reader.metadata == {"format": "pt", "é": "ü\n"}
        assert set(reader.infos) == set(held)
    for name in ("../a", "/a", "a/../../b", "a\nb"):
        with pytest.raises(ConversionError, match=r"cannot be the name|not printable"):
            write_tensors(tmp_path / "b.npz", {name: np.ones(1)})
    infos = {k: TensorInfo.of(np.asarray(v)) for k, v in held.items()}
    with create_tensors(tmp_path / "b.npz", infos) as writer:
        writer.write("b", np.asarray(held["b"]))
        with pytest.raises(ConversionError, match="'a' was not written whole"):
            writer.finish()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["a.npz"]


def test_a_flipped_byte_of_an_npz_is_found(tmp_path):
    write_tensors(tmp_path / "a.npz", {"a": np.zeros(100), "b": np.ones(3)})
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[300] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with open_tensors(tmp_path / "a.npz") as reader:
        assert same(reader.read("b"), np.ones(3))
        with pytest.raises(ConversionError, match="a is damaged: its CRC-32 differs"):
            reader.read("a", (slice(0, 1),))


def test_msgpack_of_flax(tmp_path):
    params = {
        "Dense_0": {
            "kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3),
            "bias": jnp.ones(3, jnp.bfloat16),
        }
    }
    stats = {"BatchNorm_0": {"mean": np.float32([1, 2])}}
    path = tmp_path / "a.msgpack"
    path.write_bytes(
        flax.serialization.msgpack_serialize({"params": params, "step": 3, "opt_state": {"0": stats}})
    )
    with open_tensors(path) as reader:
        assert list(reader.infos) == ["Dense_0.bias", "Dense_0.kernel"]
        assert same(reader.read("Dense_0.kernel", (slice(0, 2), slice(1, 3))), np.float32([[1, 2], [4, 5]]))
        assert same(reader.read("Dense_0.bias"), np.ones(3, ml_dtypes.bfloat16))
        assert reader.metadata == {"step": "3"}
        assert reader.notes == ["the weights are those under 'params'", "left out: 'opt_state'"]
    path.write_bytes(
        flax.serialization.msgpack_serialize({"params": params, "batch_stats": stats, "step": np.int32(3)})
    )
    with open_tensors(path) as reader:
        assert [k.partition(".")[0] for k in reader.infos] == ["batch_stats", "params", "params", "step"]
    with MsgpackReader(path, "batch_stats") as reader:
        assert list(reader.infos) == ["BatchNorm_0.mean"]


def test_msgpack_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    value = np.random.default_rng(0).normal(size=(5, 7))
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.msgpack_serialize({"a": {"b": value}}))
    with open_tensors(tmp_path / "a.msgpack") as reader:
        assert same(reader.read("a.b"), value)
        assert same(reader.read("a.b", (slice(1, 2), slice(3, 6))), value[1:2, 3:6])


def test_strided_arrays_are_read_in_pieces(tmp_path, monkeypatch):
    from jaxarch.convert import extents

    monkeypatch.setattr(extents, "PIECE_BYTES", 64)
    value = np.random.default_rng(0).normal(size=(6, 5, 4, 3))
    (tmp_path / "a").write_bytes(value.tobytes())
    with (tmp_path / "a").open("rb") as file:
        for view in (
            value,
            value.T,
            value[::2, 1:, ::3],
            value.transpose(2, 0, 3, 1)[1:],
            value[:0],
            value[..., :1],
        ):
            start = (
                view.__array_interface__["data"][0] - value.__array_interface__["data"][0] if view.size else 0
            )
            again = read_strided(file.fileno(), start, view.shape, view.strides, view.dtype, "a")
            assert same(again, np.array(view, order="C"))
        with pytest.raises(ConversionError, match="a ends at byte"):
            read_strided(file.fileno(), 0, (1000,), (8,), value.dtype, "a")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_folders_of_torch_distributed_checkpoint(tmp_path):
    import torch.distributed.checkpoint as dcp

    weights = {"a.w": torch.randn(3, 4), "b": torch.arange(5, dtype=torch.int16), "s": torch.tensor(2.5)}
    state = {"model": weights, "optim": {"state": {"a.w": {"step": torch.tensor(3.0)}}}, "epoch": 3}
    dcp.save(state, checkpoint_id=tmp_path / "d", no_dist=True)
    with open_tensors(tmp_path / "d") as reader:
        assert list(reader.infos) == list(weights)
        for name, value in weights.items():
            assert same(reader.read(name), value.numpy()), name
        assert same(reader.read("a.w", (slice(1, 3), slice(0, 2))), weights["a.w"][1:3, :2].numpy())
        assert "the weights are those under 'model'" in reader.notes
        assert "left out: 'optim' (tensors: 1)" in reader.notes
        assert any(n.startswith("left out: 'epoch' (") for n in reader.notes)


def dcp_in_parts(folder, value: torch.Tensor, bounds) -> None:
    """A checkpoint whose one tensor lies in parts, as several processes save it."""
    import io
    import pickle

    from torch.distributed.checkpoint import metadata as m
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir()
    chunks, storage, data = [], {}, b""
    for low, high in bounds:
        stream = io.BytesIO()
        torch.save(value[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].clone(), stream)
        sizes = torch.Size(b - a for a, b in zip(low, high, strict=True))
        chunks.append(m.ChunkStorageMetadata(torch.Size(low), sizes))
        storage[m.MetadataIndex("w", low)] = _StorageInfo("__0_0.distcp", len(data), len(stream.getvalue()))
        data += stream.getvalue()
    described = m.TensorStorageMetadata(m.TensorProperties.create_from_tensor(value), value.shape, chunks)
    (folder / "__0_0.distcp").write_bytes(data)
    (folder / ".metadata").write_bytes(pickle.dumps(m.Metadata({"w": described}, None, storage)))


def test_parts_of_several_processes_are_joined(tmp_path):
    value = torch.randn(6, 5)
    dcp_in_parts(tmp_path / "d", value, [((0, 0), (4, 2)), ((0, 2), (4, 5)), ((4, 0), (6, 5))])
    with open_tensors(tmp_path / "d") as reader:
        assert same(reader.read("w"), value.numpy())
        assert same(
            reader.read("w", (slice(3, 5), slice(1, 4))), np.array(value[3:5, 1:4].numpy(), order="C")
        )
    for name, bounds in {"gap": [((0, 0), (4, 5))], "overlap": [((0, 0), (4, 5)), ((2, 0), (4, 5))]}.items():
        dcp_in_parts(tmp_path / name, value, bounds)
        with pytest.raises(ConversionError, match="do not cover its shape"):
            open_tensors(tmp_path / name)


def test_folders_of_peft(tmp_path):
    names = [f"base_model.model.layers.{i}.q.lora_{k}.weight" for i in (0, 1) for k in "AB"]
    held = {n: np.ones((2, 3), np.float32) for n in names}
    write_tensors(tmp_path / "adapter_model.safetensors", held)
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "peft_type": "LORA"}')
    with open_tensors(tmp_path) as reader:
        assert list(reader.infos) == [n.removeprefix("base_model.model.") for n in sorted(names)]
        assert same(reader.read("layers.1.q.lora_B.weight"), held[names[-1]])
        assert reader.metadata["peft.r"] == "2"
        assert reader.notes == ["these are adapters, without the model they belong to"]


def test_orbax_of_others(tmp_path):
    import orbax.checkpoint as ocp

    held = {"params": {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}}, "step": jnp.int32(3)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "o", held)
    with open_tensors(tmp_path / "o") as reader:
        assert set(reader.infos) == {"params.Dense_0.kernel", "step"}
        assert same(reader.read("params.Dense_0.kernel"), np.asarray(held["params"]["Dense_0"]["kernel"]))


def test_64_bits_without_x64(tmp_path):
    """A user's process: nothing that is read or written passes through arrays of JAX, which have 32 bits there."""
    code = (
        "import sys; from pathlib import Path; import numpy as np; import jax\n"
        "from jaxarch.convert.files import read_tensors, write_tensors\n"
        "assert not jax.config.read('jax_enable_x64')\n"
        "held = {'f': np.array([0.1, 1e300]), 'i': np.int64(2**40 + 7), 'u': np.array([2**64 - 1], np.uint64)}\n"
        "held |= {'c': np.array([0.1 + 1e300j]), 'h': np.arange(3, dtype=np.int16)}\n"
        "for suffix in ('.npz', '.pt', '.safetensors'):\n"
        "    if suffix == '.safetensors': del held['c']\n"
        "    write_tensors(Path(sys.argv[1]) / f'a{suffix}', held)\n"
        "    again = read_tensors(Path(sys.argv[1]) / f'a{suffix}')\n"
        "    assert again.keys() == held.keys()\n"
        "    for k, v in held.items():\n"
        "        assert (again[k].dtype, again[k].tobytes()) == (v.dtype, v.tobytes()), (suffix, k)\n"
        "print('same')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr[-2000:]
