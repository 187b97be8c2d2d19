"""Tensors that are read and written by parts: all of their bytes arrive, or nothing appears."""

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxarch import files
from jaxarch.arrays import SUB_BYTE, as_numpy
from jaxarch.convert.dtypes import SAFETENSORS
from jaxarch.convert.files import create_tensors, open_tensors, read_tensors, write_tensors
from jaxarch.convert.tensors import Tensor, TensorInfo, block_indices, concatenate, in_order, stack
from jaxarch.errors import ConversionError

RNG = np.random.default_rng(0)


@pytest.fixture
def tensors():
    return {
        "a.weight": RNG.normal(size=(40, 30)).astype(ml_dtypes.bfloat16),
        "a.bias": RNG.normal(size=7),
        "count": np.array(2**40 + 7),
        "small": np.arange(6, dtype=np.int32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float16),
        "flags": np.array([True, False]),
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


def test_a_read_of_a_view_is_the_view_of_a_read():
    value = RNG.normal(size=(4, 5, 6))
    tensor, index = Tensor.of(value), (slice(1, 3), slice(2), slice(3, None))
    other = Tensor.of(value[:, 1:3])
    views = {
        "permute": (tensor.permute((2, 0, 1)), value.transpose(2, 0, 1)),
        "cut": (tensor.cut((slice(1, 4), slice(2, 5))), value[1:4, 2:5]),
        "concatenate": (concatenate([tensor, other], 1), np.concatenate([value, value[:, 1:3]], 1)),
        "stack": (stack([tensor, tensor.map(value.dtype, np.negative)]), np.stack([value, -value])),
        "cast": (tensor.map(np.dtype(np.float32), np.float32), value.astype(np.float32)),
        "twice": (tensor.permute((1, 2, 0)).cut((slice(1, 4),)), value.transpose(1, 2, 0)[1:4]),
    }
    for name, (view, expected) in views.items():
        assert (view.shape, view.dtype) == (expected.shape, expected.dtype), name
        np.testing.assert_array_equal(view.read(), expected, err_msg=name)
        np.testing.assert_array_equal(view.read(index), expected[index], err_msg=name)
        blocks = list(view.blocks(64))
        np.testing.assert_array_equal(np.concatenate(blocks), expected.reshape(-1), err_msg=name)
        assert max(b.nbytes for b in blocks) <= 64


@pytest.mark.parametrize("shape", [(300, 700), (3, 5, 300, 2), (270, 1, 3, 280), (5, 1)])
def test_tiles_copy_every_element(shape):
    value = RNG.normal(size=shape)
    for perm in itertools.permutations(range(len(shape))):
        copy = in_order(value.transpose(perm))
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, value.transpose(perm))


@pytest.mark.parametrize("limit", [1, 8, 24, 100, 10**6])
def test_blocks_cover_a_shape_in_order(limit):
    for shape in [(), (5,), (3, 4), (2, 3, 4), (7, 1, 2)]:
        value = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        parts = [value[i].reshape(-1) for i in block_indices(shape, 8, limit)]
        np.testing.assert_array_equal(np.concatenate(parts), value.reshape(-1))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_dtype_there_and_back(tmp_path, suffix):
    tensors = {}
    for name, dtype in SAFETENSORS.items():
        codes = RNG.integers(0, 2 ** SUB_BYTE.get(dtype, 8) if name != "BOOL" else 2, 192).astype(np.uint8)
        if suffix != ".pt" or not name.startswith("F6"):  # torch has no numbers of six bits
            tensors[name] = codes.view(dtype).reshape(2, -1)
    write_tensors(tmp_path / f"a{suffix}", tensors)
    assert_same(read_tensors(tmp_path / f"a{suffix}"), tensors)


@pytest.mark.parametrize("held", [0, 1 << 20])
def test_a_torch_file_is_one_of_torch_and_is_verified(tmp_path, tensors, monkeypatch, held):
    monkeypatch.setattr("jaxarch.convert.files._HELD_BYTES", held)
    tensors["F4"] = RNG.integers(0, 16, 8).astype(np.uint8).view(SAFETENSORS["F4"]).reshape(2, 4)
    tensors["F8"] = RNG.integers(0, 256, 8).astype(np.uint8).view(SAFETENSORS["F8_E4M3"])
    path = tmp_path / "a.pt"
    write_tensors(path, tensors)
    assert_same(read_tensors(path), tensors)
    content = torch.load(path, weights_only=True)
    assert_same({k: as_numpy(v) for k, v in content.items()}, tensors)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    flip(path, path.read_bytes().index(tensors["a.bias"].tobytes()))
    with pytest.raises(ConversionError, match=r"'a\.bias' has other bytes"):
        read_tensors(path)


def test_the_library_reads_what_is_written_and_the_reverse(tmp_path, tensors):
    write_tensors(tmp_path / "a.safetensors", tensors, {"author": "é"})
    assert_same(safetensors.numpy.load_file(tmp_path / "a.safetensors"), tensors)
    with open_tensors(tmp_path / "a.safetensors") as reader:
        assert reader.metadata == {"format": "pt", "author": "é"}
    safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors")
    assert_same(read_tensors(tmp_path / "b.safetensors"), tensors)


def test_shards_have_an_index_and_each_is_read_by_slices(tmp_path, tensors):
    write_tensors(tmp_path / "model.safetensors", tensors, shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors.values())
    assert len(set(index["weight_map"].values())) == 2
    assert_same(read_tensors(tmp_path), tensors)
    with open_tensors(tmp_path) as reader:
        part = reader.read("a.weight", (slice(3, 5), slice(10)))
    np.testing.assert_array_equal(part, tensors["a.weight"][3:5, :10])


def test_a_tensor_is_written_in_parts_or_not_at_all(tmp_path):
    value = np.arange(12.0).reshape(4, 3)
    path, infos = tmp_path / "a.safetensors", {"a": TensorInfo.of(value)}
    with create_tensors(path, infos) as writer:
        writer.write("a", value[:1])
        assert not path.exists()
        with pytest.raises(ConversionError, match="'a' was not written"):
            writer.finish()
    assert not list(tmp_path.iterdir())
    with create_tensors(path, infos) as writer:
        for row in value:
            writer.write("a", row)
        with pytest.raises(ConversionError, match="more bytes"):
            writer.write("a", value[0])
        writer.finish()
    assert_same(read_tensors(path), {"a": value})


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGE = {
    "a flipped bit": (lambda p: flip(p, -1), "has other bytes than were written"),
    "another file": (lambda p: write_other(p), r"'a\.bias' is missing, F64"),
    "an edited manifest": (lambda p: edit(manifest(p), '"I32"', '"U32"'), "does not hash to what it says"),
    "a manifest of nothing": (lambda p: manifest(p).write_text('{"format": 2}'), "does not hash to what"),
    "no manifest's JSON": (lambda p: manifest(p).write_text("{"), r"is not JSON; delete it"),
}


def manifest(path):
    return path.with_name(path.name + ".checksums.json")


def write_other(path):
    safetensors.numpy.save_file({"b": np.ones(3)}, path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_changed_since_it_was_written_is_not_believed(tmp_path, tensors, damage):
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors)
    change, message = DAMAGE[damage]
    change(path)
    with pytest.raises(ConversionError, match=message) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_what_the_disk_did_not_keep_is_found_before_it_appears(tmp_path, tensors, monkeypatch):
    written = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda handle, data, at: written(handle, bytes(len(data)), at))
    with pytest.raises(ConversionError, match="was not read back as it was written"):
        write_tensors(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_said_before_the_first_byte(tmp_path, tensors, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConversionError, match=r"needs 2,[\d,]+ bytes, the disk has 1,000,000 free"):
        write_tensors(tmp_path / "a.safetensors", tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_disk_that_takes_no_more_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr("jaxarch.convert.files._HELD_BYTES", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(
            ConversionError, match=r"(?i)could not be written: .*(too large|iostream)"
        ) as error:
            write_tensors(tmp_path / "folder" / name, {"a": np.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.*"))


# ------------------------------------------------------------------------------------------ other processes

WRITER = """
import os, sys
import numpy as np
from jaxarch.arrays import SUB_BYTE, as_numpy
from jaxarch.convert.dtypes import SAFETENSORS
from jaxarch.convert.files import create_tensors
from jaxarch.convert.tensors import TensorInfo
path, count = sys.argv[1], int(sys.argv[2])
infos = {f"t{i}": TensorInfo("I64", (1000,)) for i in range(8)}
import jaxarch.convert.store
jaxarch.convert.store._SYNC_BYTES = 1
with create_tensors(path, infos, fingerprint="same") as writer:
    print("started", sorted(writer.done), flush=True)
    for i in range(count):
        if f"t{i}" not in writer.done:
            writer.write(f"t{i}", np.arange(1000) + i)
    if count < 8:
        print("waiting", flush=True)
        sys.stdin.read()
        os.kill(os.getpid(), 9)
    writer.finish()
print("finished", flush=True)
"""


def start(path, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_write_is_continued_and_another_target_left_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    first = start(path, 5)
    assert first.stdout.readline() == "started []\n"
    assert first.stdout.readline() == "waiting\n"
    # A second writer of the same target is told, one of another target is not disturbed.
    with pytest.raises(ConversionError, match=rf"is being written by process {first.pid} on"):
        write_tensors(path, {"a": np.ones(3)})
    write_tensors(tmp_path / "b.safetensors", {"a": np.ones(3)})
    first.communicate("")
    assert first.returncode == -9
    assert not path.exists()
    (leftover,) = tmp_path.glob(".*.tmp*")
    flip(leftover / "a.safetensors", -1 - 3 * 8000)  # in t4, the last that was written
    with open(leftover / "journal.jsonl", "a") as journal:
        journal.write('["t5", "cut o')
    second = start(path, 8)
    out, err = second.communicate("")
    assert second.returncode == 0, err
    assert out.splitlines() == ["started ['t0', 't1', 't2', 't3']", "finished"]
    assert_same(read_tensors(path), {f"t{i}": np.arange(1000) + i for i in range(8)})
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f"{k}.safetensors{s}" for k in "ab" for s in ("", ".checksums.json")}


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "a.txt"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    own = files.private_name(path)
    own.mkdir()
    names = {
        "dead": own.with_name(own.name.replace(str(os.getpid()), dead.stdout.strip())),
        "alive": own.with_name(own.name.replace(str(os.getpid()), "1")),
        "elsewhere": tmp_path / ".a.txt.another-host.1.tmp",
        "other": own.with_name(
            own.name.replace("a.txt", "b.txt").replace(str(os.getpid()), dead.stdout.strip())
        ),
    }
    for name in names.values():
        name.write_text("")
    files.write_text(path, "content")
    assert {k for k, name in names.items() if name.exists()} == {"alive", "elsewhere", "other"}
    assert own.is_dir()
    files.discard(own)
    assert not own.exists()
    assert path.read_text() == "content"


def test_a_folder_is_replaced_by_a_folder(tmp_path):
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with files.replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "text").write_text(content)
        assert (target / "text").read_text() == content
    with pytest.raises(FileNotFoundError), files.replacing(target):  # nothing was made
        pass
    assert (target / "text").read_text() == "new"
    # Killed between the two renames: the old folder is put back.
    target.rename(tmp_path / ".folder.old")
    files.discard(files.private_name(target))
    assert (target / "text").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
