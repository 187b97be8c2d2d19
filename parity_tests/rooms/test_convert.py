"""There and back is the identity, bitwise; what does not fit is refused by name."""

import numpy as np
import pytest
import torch

from jaxarch.catalog import create_model
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.errors import ConversionError


@pytest.fixture
def reference():
    torch.manual_seed(0)
    return create_model("mlp", "tiny", package="torchref").double()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_files_hold_every_bit(tmp_path, reference, suffix, dtype):
    tensors = {k: v.numpy() for k, v in reference.state_dict().items()}
    reference.to(dtype)
    torch.save(reference.state_dict(), tmp_path / "a.pth")
    tensors = read_tensors(tmp_path / "a.pth")
    write_tensors(tmp_path / f"b{suffix}", tensors)
    again = read_tensors(tmp_path / f"b{suffix}")
    assert again.keys() == reference.state_dict().keys()
    for key, value in again.items():
        assert value.dtype == tensors[key].dtype
        assert value.tobytes() == tensors[key].tobytes()


def test_model_and_back(reference):
    model = create_model("mlp", "tiny", rngs=1)
    load_state_dict(model, reference.state_dict())
    for key, value in to_state_dict(model).items():
        assert value.tobytes() == reference.state_dict()[key].numpy().tobytes(), key
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(model).items()}, strict=True)


def test_wrong_keys_are_named_with_the_nearest(reference):
    model = create_model("mlp", "tiny")
    before = to_state_dict(model)
    weights = dict(reference.state_dict())
    weights["network.0.wieght"] = weights.pop("network.0.weight")
    with pytest.raises(ConversionError, match=r"missing: network\.0\.weight \(nearest: network\.0\.wieght\)"):
        load_state_dict(model, weights)
    for key, value in to_state_dict(model).items():
        np.testing.assert_array_equal(value, before[key])


def test_wrong_shape_and_kind_are_named(reference):
    model = create_model("mlp", "tiny")
    weights = dict(reference.state_dict())
    weights["network.0.weight"] = weights["network.0.weight"].T
    message = r"network\.0\.weight has shape \(10, 16\), the model needs \(16, 10\)"
    with pytest.raises(ConversionError, match=message):
        load_state_dict(model, weights)
    weights = {**reference.state_dict(), "network.0.bias": torch.zeros(16, dtype=torch.int64)}
    with pytest.raises(ConversionError, match=r"network\.0\.bias is int64"):
        load_state_dict(model, weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_and_missing_files(tmp_path, reference, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ConversionError, match="no such file"):
        read_tensors(path)
    write_tensors(path, {k: v.numpy() for k, v in reference.state_dict().items()})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConversionError, match="not a readable"):
        read_tensors(path)


def test_no_pickled_code_is_run(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match="not a readable torch weight file") as error:
        read_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(error.value)


def test_a_refused_write_leaves_the_old_file(tmp_path, reference, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(3)})
    old = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(ConversionError, match="No space left"):
        write_tensors(path, {"a": np.zeros(3)})
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.checksums.json"]


def test_flax_own_layers_convert():
    from flax import nnx

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(7, 4)
            self.conv = torch.nn.Conv2d(3, 8, (3, 2), groups=1)
            self.up = torch.nn.ConvTranspose2d(3, 5, 2)
            self.bn = torch.nn.BatchNorm2d(8)
            self.norm = torch.nn.LayerNorm(4)
            self.fc = torch.nn.Linear(4, 4)

    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 4, rngs=rngs)
            self.conv = nnx.Conv(3, 8, (3, 2), rngs=rngs)
            self.up = nnx.ConvTranspose(3, 5, (2, 2), transpose_kernel=True, rngs=rngs)
            self.bn = nnx.BatchNorm(8, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.fc = nnx.Linear(4, 4, rngs=rngs)

    theirs, ours = Theirs().float(), Ours(nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    again = {k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}
    for key, value in again.items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    theirs.load_state_dict(again, strict=True)
