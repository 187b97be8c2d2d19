"""Checkpoint folders: orbax and training read what is streamed, and no number passes through 32 bits on the way."""

import json
import subprocess
import sys
import textwrap

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from jaxarch import state
from jaxarch.catalog import create_model
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.checkpoint_folder import ARRAYS, create_checkpoint, open_checkpoint
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.orbax import OrbaxReader, check_folder_names, orbax_places
from jaxarch.convert.placement import place
from jaxarch.convert.store import StoreWriter
from jaxarch.convert.stream import copy, infos_of
from jaxarch.convert.tensors import Tensor, TensorInfo, tensors_of
from jaxarch.errors import ConversionError
from jaxarch.train import checkpoint

RNG = np.random.default_rng(0)


@pytest.fixture
def arrays():
    return {
        "params/a.weight": RNG.normal(size=(40, 30)),
        "params/a.bias": RNG.normal(size=7).astype(ml_dtypes.bfloat16),
        "params/scale": RNG.integers(0, 256, 6).astype(np.uint8).view(ml_dtypes.float8_e4m3fn).reshape(2, 3),
        "rest/count": np.array(2**40 + 7),
        "rest/small": np.arange(6, dtype=np.int32).reshape(2, 3),
        "rest/empty": np.zeros((0, 4), np.float16),
        "rest/flags": np.array([True, False]),
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape), name
        assert actual[name].tobytes() == value.tobytes(), name


def write(path, arrays, about="{}"):
    tensors = {k: Tensor.of(v) for k, v in arrays.items()}
    with create_checkpoint(path, infos_of(tensors), about) as writer:
        copy(tensors, writer)


def test_orbax_and_training_read_what_is_streamed(tmp_path, arrays):
    write(tmp_path / "1", arrays)
    assert_same(ocp.load(tmp_path / "1" / ARRAYS), arrays)
    assert_same(checkpoint.read(tmp_path / "1"), arrays)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for k, v in arrays.items()}
    assert_same(checkpoint.latest_intact(tmp_path, like)[1], arrays)


@pytest.mark.parametrize("compressed", [True, False])
def test_chunks_are_read_by_slices(tmp_path, arrays, compressed):
    if compressed:
        del arrays["rest/empty"]  # which orbax does not save
        ocp.save(tmp_path / "a", arrays)
    else:
        tensors = {k: Tensor.of(v) for k, v in arrays.items()}
        places = orbax_places(infos_of(tensors), ".", chunk_bytes=100)
        assert sum(name.startswith("./state/params/a.weight/") for name in places.files) == 120
        with StoreWriter(tmp_path / "a", infos_of(tensors), places) as writer:
            copy(tensors, writer)
        assert_same(ocp.load(tmp_path / "a"), arrays)
    with OrbaxReader(tmp_path / "a") as reader:
        assert_same({k: reader.read(k) for k in reader.infos}, arrays)
        for index in [(slice(3, 5),), (slice(None), slice(7, 9)), (slice(9, 31), slice(11, 30))]:
            part = reader.read("params/a.weight", index)
            np.testing.assert_array_equal(part, arrays["params/a.weight"][index])
            assert part.flags.owndata
        transposed = tensors_of(reader)["params/a.weight"].permute((1, 0))
        blocks = np.concatenate(list(transposed.blocks(500)))
        np.testing.assert_array_equal(blocks, arrays["params/a.weight"].T.reshape(-1))


@pytest.mark.parametrize("name", ["../a", "/a", "a//b", ".", "a\0", "é" * 200, "params/a.weight/c"])
def test_a_name_that_is_no_folder_is_refused(arrays, name):
    with pytest.raises(ConversionError, match="cannot be the name of an array"):
        check_folder_names([*arrays, name])
    with pytest.raises(ConversionError, match="cannot be the name of an array"):
        orbax_places(
            {**infos_of({k: Tensor.of(v) for k, v in arrays.items()}), name: TensorInfo("F32", ())}, ""
        )


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rename_dtype(path):
    edit(path / ARRAYS / "state" / "rest/small" / ".zarray", lambda c: c.update(dtype="<u4"))


FAULTS = {
    "no files listed": (
        lambda p: edit(p / "checksums.json", lambda c: c.update(tensors={})),
        "does not hash to what it says",
    ),
    "an edited dtype": (rename_dtype, r"'rest/small' is U32 \(2, 3\), I32 \(2, 3\) was written"),
    "an edited description": (lambda p: (p / "about.json").write_text('{"name": "mlp"}'), "other bytes"),
    "both": (
        lambda p: edit(p / "checksums.json", lambda c: c["tensors"]["rest/small"].update(dtype="U32")),
        "does not hash to what it says",
    ),
    "a missing chunk": (
        lambda p: (p / ARRAYS / "state" / "params/a.weight" / "0.0").unlink(),
        "could not be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_edited_checkpoint_is_not_believed(tmp_path, arrays, fault):
    write(tmp_path / "1", arrays)
    change, message = FAULTS[fault]
    change(tmp_path / "1")
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(tmp_path / "1")


def test_a_checkpoint_may_be_verified_as_it_is_read(tmp_path, arrays):
    write(tmp_path / "1", arrays)
    chunk = tmp_path / "1" / ARRAYS / "state" / "params/a.weight" / "0.0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    restored = checkpoint.load(tmp_path / "1", verify=False)
    np.testing.assert_array_equal(restored.tensors["rest/small"].read(), arrays["rest/small"])
    with pytest.raises(ConversionError, match=r"'params/a\.weight' has other bytes than were written"):
        restored.tensors["params/a.weight"].read((slice(0, 1),))


def old_form(path):
    """Give a checkpoint the manifest of earlier versions."""
    from jaxarch.convert.checkpoint_folder import _crc

    infos = {
        k: {"shape": list(v.shape), "dtype": str(v.numpy)} for k, v in open_checkpoint(path).infos.items()
    }
    files = {str(p.relative_to(path / ARRAYS)): _crc(p) for p in (path / ARRAYS).rglob("*") if p.is_file()}
    (path / "checksums.json").write_text(json.dumps({"arrays": infos, "files": files}))


OLD_FAULTS = {
    "nothing is listed": (lambda c: c.update(files={}), "has changed since it was written"),
    "another dtype": (lambda c: c["arrays"]["rest/count"].update(dtype="int32"), "rest/count is .*int64"),
    "an array less": (lambda c: c["arrays"].pop("rest/count"), "rest/count is"),
}


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path, arrays):
    write(tmp_path / "1", arrays)
    old_form(tmp_path / "1")
    assert_same(checkpoint.read(tmp_path / "1"), arrays)


@pytest.mark.parametrize("fault", OLD_FAULTS)
def test_an_edited_manifest_of_an_earlier_version_is_not_believed(tmp_path, arrays, fault):
    write(tmp_path / "1", arrays)
    old_form(tmp_path / "1")
    change, message = OLD_FAULTS[fault]
    edit(tmp_path / "1" / "checksums.json", change)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.read(tmp_path / "1")


def test_each_device_reads_its_own_shards(arrays):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    value = arrays["params/a.weight"]
    read = []

    def view(index):
        read.append(value[index].nbytes)
        return value[index]

    spec = jax.sharding.PartitionSpec
    for parts, expected in {
        spec("a", "b"): [value.nbytes // 8] * 8,
        spec(None, "b"): [value.nbytes // 2] * 2,  # read once for the four devices that hold it
        spec(): [value.nbytes],
    }.items():
        read.clear()
        placed = place(Tensor(TensorInfo.of(value), view), jax.sharding.NamedSharding(mesh, parts))
        assert read == expected
        assert placed.sharding.spec == parts
        np.testing.assert_array_equal(placed, value)


def test_a_sharded_model_loads_its_shards_and_keeps_them():
    model, other = (create_model("mlp", "tiny", rngs=i) for i in range(2))
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    weights, read = to_state_dict(other), {}

    def counted(name, value):
        def view(index):
            read.setdefault(name, []).append(value[index].nbytes)
            return value[index]

        return Tensor(TensorInfo.of(value), view)

    leaves = state.flat(nnx.state(model, nnx.Param))
    spec = jax.sharding.PartitionSpec
    shardings = {
        k: jax.sharding.NamedSharding(mesh, spec("fsdp") if v.shape[0] % 4 == 0 else spec())
        for k, v in leaves.items()
    }
    state.update(model, {k: jax.device_put(v, shardings[k]) for k, v in leaves.items()})
    load_state_dict(model, {k: counted(k, v) for k, v in weights.items()})
    for k, v in state.flat(nnx.state(model, nnx.Param)).items():
        assert v.sharding == shardings[k], k
        assert read[k] == ([v.nbytes // 4] * 4 if v.shape[0] % 4 == 0 else [v.nbytes]), k
    assert_same(to_state_dict(model), weights)
    assert any(s.spec for s in shardings.values())


# -------------------------------------------------------------------------------------------- without x64


def without_x64(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_64_bits_survive_a_process_without_x64(tmp_path):
    weights = {}
    for i, (name, tensor) in enumerate(
        create_model("resnet", "tiny", package="torchref").state_dict().items()
    ):
        is_count = name.endswith("num_batches_tracked")
        count = np.array(2**40 + 7) if i // 6 % 2 else np.array(2**30 + 7, np.int32)
        weights[name] = count if is_count else RNG.random(tensor.shape)
    assert {str(v.dtype) for v in weights.values()} == {"int32", "int64", "float64"}
    write_tensors(tmp_path / "a.safetensors", weights)
    without_x64(
        """
        import sys
        from pathlib import Path
        import jax, numpy as np
        from jaxarch.commands.convert import convert
        from jaxarch.train import checkpoint
        assert not jax.config.read("jax_enable_x64")
        out = Path(sys.argv[1])
        names = ["a.safetensors", "folder", "b.pt", "other", "c.safetensors"]
        for source, target in zip(names, names[1:]):
            named = {} if "." not in source else {"model": "resnet", "variant": "tiny"}
            convert(str(out / source), str(out / target), **named)
        leaves = checkpoint.load(out / "folder").leaves
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place) for k, v in leaves.items()}
        for k, v in checkpoint.read(out / "folder", like).items():
            assert (v.dtype, np.asarray(v).tobytes()) == (leaves[k].dtype, leaves[k].tobytes()), k
        """,
        tmp_path,
    )
    for name in "b.pt", "c.safetensors":
        assert_same(read_tensors(tmp_path / name), weights)


def test_resume_without_x64_refuses_64_bits(tmp_path):
    out = without_x64(
        """
        import sys
        from pathlib import Path
        import jax, numpy as np
        from jaxarch.errors import CheckpointError
        from jaxarch.train import checkpoint
        folder = Path(sys.argv[1])
        checkpoint.save(folder, 1, {"w": np.ones(3), "n": np.array(2**40 + 7)}, {})
        assert checkpoint.read(folder / "1")["n"] == 2**40 + 7
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        for dtypes in (np.float64, np.int32), (np.float32, np.int64):
            like = {k: jax.ShapeDtypeStruct(s, t, sharding=place) for k, s, t in zip("wn", ((3,), ()), dtypes)}
            try:
                checkpoint.latest_intact(folder, like)
            except CheckpointError as e:
                print(e)
        restored = checkpoint.load(folder / "1")
        assert restored._fitting("w", restored.leaves["w"]).dtype == np.float32
        try:
            restored._fitting("n", restored.leaves["n"])
        except CheckpointError as e:
            print(e)
        """,
        tmp_path,
    )
    assert "n holds integers that do not fit int32: set JAX_ENABLE_X64=1" in out
    assert "n is int64 (), expected int32 ()" in out
    assert "w is float64 (3,), expected float32 (3,)" in out
