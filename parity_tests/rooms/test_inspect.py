"""`jaxarch inspect` and `jaxarch diff`: what lies in a place of any format, and how two of them differ."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch

from jaxarch import catalog
from jaxarch.cli import main
from jaxarch.commands.convert import conversion
from jaxarch.commands.diff import compare
from jaxarch.convert import to_state_dict
from jaxarch.convert.files import write_tensors
from jaxarch.convert.tensors import Tensor

MLP = {"model": "mlp", "variant": "tiny"}


@pytest.fixture
def weights():
    return to_state_dict(catalog.create_model("mlp", "tiny", rngs=3))


def output(capsys, *args, status=0):
    assert main([str(a) for a in args]) == status
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines() if "/" not in line), text
    return text


def test_every_format_is_listed(tmp_path, weights, capsys):
    """Names, shapes, dtypes, sizes, shards, metadata, ties and checksums, of files and folders."""
    file = tmp_path / "a.safetensors"
    write_tensors(file, weights, {"epoch": "3"})
    places = {"one": file, "shards": tmp_path / "s.safetensors.index.json", "orbax": tmp_path / "ours"}
    conversion(str(file), str(tmp_path / "s.safetensors"), **MLP, shard_size="1KB")
    conversion(str(file), str(places["orbax"]), **MLP)
    for suffix in ("pt", "npz"):
        places[suffix] = tmp_path / f"b.{suffix}"
        conversion(str(file), str(places[suffix]), **MLP)
    for kind, place in places.items():
        content = json.loads(output(capsys, "inspect", place, "--json"))
        names = {k.partition("/")[2] if kind == "orbax" else k for k in content["tensors"]}
        assert names == set(weights), kind
        assert content["bytes"] == sum(v.nbytes for v in weights.values())
        assert content["parameters"] == sum(v.size for v in weights.values())
        text = output(capsys, "inspect", place)
        assert f"{len(weights)} tensors, {content['bytes']:,} bytes" in text
        assert "network.0.weight" in text
    shards = json.loads(output(capsys, "inspect", places["shards"], "--json"))
    assert len(shards["shards"]) > 2
    assert shards["tensors"]["network.0.weight"]["file"] in shards["shards"]
    assert "metadata: epoch = 3" in output(capsys, "inspect", file)
    assert "checkpoint of mlp tiny" in output(capsys, "inspect", places["orbax"])
    assert "recorded, not compared" in output(capsys, "inspect", file)
    assert "compared, all are right" in output(capsys, "inspect", file, "--verify")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    text = output(capsys, "inspect", file, "--verify", status=1)
    assert "damaged: network.8.weight" in text
    assert "checksums: damaged: 1 tensors" in text


def test_ties_and_long_names(tmp_path, capsys):
    weight = torch.arange(6.0).reshape(2, 3)
    content = {"embed.weight": weight, "head.weight": weight, "x" * 300: torch.ones(2)}
    torch.save(content, tmp_path / "a.pt")
    text = output(capsys, "inspect", tmp_path / "a.pt")
    assert "tied: head.weight = embed.weight" in text
    assert "xx..xx" in text
    write_tensors(tmp_path / "b.safetensors", {"a": np.ones(2)}, {"c": "a"})
    assert "tied: c = a" in output(capsys, "inspect", tmp_path / "b.safetensors")


def test_what_is_no_place_is_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("")
    for place in (tmp_path / "absent", tmp_path / "notes.txt", tmp_path):
        assert main(["inspect", str(place)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_the_same_weights_in_two_formats_do_not_differ(tmp_path, weights, capsys):
    write_tensors(tmp_path / "a.safetensors", weights)
    conversion(str(tmp_path / "a.safetensors"), str(tmp_path / "ours"), **MLP)
    conversion(str(tmp_path / "ours"), str(tmp_path / "b.pt"))
    for a, b in (("a.safetensors", "ours"), ("ours", "b.pt"), ("a.safetensors", "b.pt"), ("ours", "ours")):
        assert "16 tensors compared: no difference" in output(capsys, "diff", tmp_path / a, tmp_path / b)


def test_each_difference_is_named(tmp_path, weights, capsys):
    first, second = dict(weights), {k: v.copy() for k, v in weights.items()}
    second["network.0.weight"][2, 3] += 0.5
    second["network.0.bias"] = second["network.0.bias"].astype(np.float32).astype(np.float64)
    first["network.0.bias"] = second["network.0.bias"].astype(np.float32)
    second["network.4.bias"] = np.ones(3)
    second["new"] = second.pop("network.8.bias")
    write_tensors(tmp_path / "a.safetensors", first)
    write_tensors(tmp_path / "b.npz", second)
    args = ("diff", tmp_path / "a.safetensors", tmp_path / "b.npz")
    rows = {r["name"]: r for r in json.loads(output(capsys, *args, "--json", status=1))["differences"]}
    assert {k: r["what"] for k, r in rows.items()} == {
        "network.0.weight": "values",
        "network.0.bias": "dtype",
        "network.4.bias": "shape",
        "network.8.bias": "missing",
        "new": "added",
    }
    assert rows["network.0.weight"]["largest"] == pytest.approx(0.5)
    assert rows["network.0.bias"]["largest"] == 0
    text = output(capsys, *args, status=1)
    assert "15 tensors compared: 1 missing, 1 added, 1 shape, 1 dtype, 1 values" in text
    text = output(capsys, *args, "--atol", 0.6, "--ignore-dtype", status=1)
    assert "1 missing, 1 added, 1 shape" in text
    assert "values" not in text


def test_numbers_that_are_hard_to_compare():
    def of(a, b):
        return compare(Tensor.of(np.array(a)), Tensor.of(np.array(b)))

    nan, inf = np.nan, np.inf
    assert of([nan, 1.0, inf], [nan, 1.0, inf]) == (0, 0, True)
    assert of([0.0], [-0.0]) == (0, 0, False)
    assert of([nan], [1.0])[0] == inf
    assert of([inf], [1.0])[0] == inf
    assert of([2**62 + 1], [2**62])[0] == 1
    assert of([True], [False])[0] == 1
    assert of([1 + 2j], [1 + 0j])[0] == 2
    half = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert compare(Tensor.of(half), Tensor.of(half.astype(np.float32))) == (0, 0, False)
    assert of(np.zeros((0, 3)), np.zeros((0, 3))) == (0, 0, True)
