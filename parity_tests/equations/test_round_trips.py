"""There and back is the identity, bitwise, for every architecture in every format that is written."""

import zlib

import numpy as np
import pytest

from jaxarch import catalog
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.checkpoint_folder import create_checkpoint, open_checkpoint
from jaxarch.convert.files import open_tensors, read_tensors, write_tensors
from jaxarch.convert.tensors import TensorInfo

FORMATS = (".safetensors", "shards", ".pt", ".npz", "orbax")


def there_and_back(kind: str, folder, tensors) -> dict[str, np.ndarray]:
    """Tensors that were written in a format and read again."""
    if kind == "orbax":
        infos = {k: TensorInfo.of(v) for k, v in tensors.items()}
        with create_checkpoint(folder / "c", infos, "{}") as writer:
            for name, value in tensors.items():
                writer.write(name, value)
            writer.finish()
        with open_checkpoint(folder / "c") as reader:
            return {k: reader.read(k) for k in reader.infos}
    if kind == "shards":
        write_tensors(folder / "model.safetensors", tensors, shard_bytes=20_000)
        with open_tensors(folder) as reader:
            return {k: reader.read(k) for k in reader.infos}
    write_tensors(folder / f"a{kind}", tensors)
    return read_tensors(folder / f"a{kind}")


def round_trip(name: str, folder) -> None:
    """A model's weights, through a file of each format, into another model of the same variant."""
    variant = catalog.page(name).cases[0]
    first = to_state_dict(catalog.create_model(name, variant, rngs=1))
    second = catalog.create_model(name, variant, rngs=2)
    zeros = {k: np.zeros_like(v) for k, v in first.items()}
    for kind in FORMATS:
        load_state_dict(second, zeros)
        (folder / kind).mkdir()
        again = there_and_back(kind, folder / kind, first)
        assert again.keys() == first.keys()
        load_state_dict(second, again)
        for key, value in to_state_dict(second).items():
            for other in (first[key], again[key]):
                assert (value.dtype, value.shape, value.tobytes()) == (
                    other.dtype,
                    other.shape,
                    other.tobytes(),
                ), key


@pytest.mark.slow
def test_every_architecture(name, tmp_path):
    round_trip(name, tmp_path)


def test_a_slice_of_the_catalog(tmp_path):
    """Two architectures, chosen by their names; the others are slow."""
    names = sorted(catalog.list_models(), key=lambda n: zlib.crc32(n.encode()))
    for name in names[:2]:
        (tmp_path / name).mkdir()
        round_trip(name, tmp_path / name)
