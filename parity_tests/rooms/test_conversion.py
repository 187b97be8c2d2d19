"""`jaxarch convert` with all its options: what is lost is named, what is risky is refused."""

import json
import math
import os
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

from jaxarch import catalog, state
from jaxarch.cli import main
from jaxarch.commands.convert import conversion, parse_settings, parse_size
from jaxarch.convert import to_state_dict
from jaxarch.convert.casting import DTYPES, cast, narrowed
from jaxarch.convert.files import open_tensors, read_tensors, write_tensors
from jaxarch.convert.hub import read_hub, write_hub
from jaxarch.convert.layout import layout
from jaxarch.convert.pipeline import Changes
from jaxarch.convert.tensors import Tensor
from jaxarch.errors import ConversionError, UsageError

MLP = {"model": "mlp", "variant": "tiny"}


@pytest.fixture
def weights():
    return to_state_dict(catalog.create_model("mlp", "tiny", rngs=3))


@pytest.fixture
def file(tmp_path, weights):
    write_tensors(tmp_path / "a.safetensors", weights)
    return tmp_path / "a.safetensors"


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert (value.dtype, value.shape, value.tobytes()) == (
            b[key].dtype,
            b[key].shape,
            b[key].tobytes(),
        ), key
    return True


# ------------------------------------------------------------------------------------------- names and rules

OWN = '''
from flax import nnx
import jax.numpy as jnp


class Net(nnx.Module):
    """Attention with einsum kernels, and a layer of flax's own."""

    def __init__(self, d: int = 6, heads: int = 3, size: int = 2, *, rngs: nnx.Rngs):
        self.q, self.k, self.v = (nnx.Param(jnp.zeros((d, heads, size))) for _ in range(3))
        self.out = nnx.Linear(d, 5, rngs=rngs)
'''
PAGE = 'class = "own_einsum_model:Net"\n\n[variants.small]\nd = 6\n'
RULES = """
[[rule]]
torch = "blocks.qkv.weight"
jax = ["q", "k", "v"]
split = 0
reshape = "(h k) d -> d h k"
sizes = { h = "heads" }

[[rule]]
torch = "blocks.proj.{w}"
jax = "out.{w}"

[[rule]]
torch = "mask"
constant = "tril"
shape = [4, 4]
dtype = "bool"
"""


@pytest.fixture
def foreign(tmp_path):
    """A user's page and rules in a folder, and weights under foreign names in a file."""
    (tmp_path / "own_einsum_model.py").write_text(OWN)
    (tmp_path / "my.toml").write_text(PAGE)
    (tmp_path / "rules.toml").write_text(RULES)
    kernel = '[[rule]]\ntorch = "blocks.proj.weight"\njax = "out.kernel"\npermute = [1, 0]\n'
    (tmp_path / "raw.toml").write_text(kernel + RULES)
    rng = np.random.default_rng(0)
    tensors = {
        "blocks.qkv.weight": rng.normal(size=(18, 7)).astype(np.float32),
        "blocks.proj.weight": rng.normal(size=(5, 7)).astype(np.float32),
        "blocks.proj.bias": rng.normal(size=5).astype(np.float32),
        "mask": np.tril(np.ones((4, 4), bool)),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    return tensors


def own(folder, source, target, changes, **more):
    """A conversion of the user's own model."""
    options = {"model": str(folder / "my.toml"), "settings": {"d": 7}} if source.suffix else {}
    changes = {k: str(folder / v) for k, v in changes.items()}
    return conversion(str(source), str(target), changes=Changes(**changes), **options, **more)


def test_a_users_page_and_rules_there_and_back(tmp_path, foreign):
    """Foreign names and layouts into a checkpoint of a user's own model, and out of it, bitwise."""
    source, ours = tmp_path / "a.safetensors", tmp_path / "ours"
    report = own(tmp_path, source, ours, {"rename": "rules.toml"}, verify=True)
    assert report.dropped == {"mask": "a constant of the rules"}
    assert report.renamed == {
        **{f"out.{w}": [f"blocks.proj.{w}"] for w in ("weight", "bias")},
        **{n: ["blocks.qkv.weight"] for n in "qkv"},
    }
    own(tmp_path, ours, tmp_path / "plain.safetensors", {})
    keys = foreign["blocks.qkv.weight"][6:12].reshape(3, 2, 7).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_tensors(tmp_path / "plain.safetensors")["k"], keys)
    own(tmp_path, ours, tmp_path / "b.safetensors", {"rename_back": "rules.toml"})
    assert same(read_tensors(tmp_path / "b.safetensors"), foreign)


def test_a_leaf_named_by_its_own_path(tmp_path, foreign):
    """Flax's own layer takes fc.kernel in JAX's layout as well as fc.weight in torch's, both ways."""
    changes = {"rename": "raw.toml", "rename_back": "rules.toml"}
    own(tmp_path, tmp_path / "a.safetensors", tmp_path / "c.npz", changes)
    assert same(read_tensors(tmp_path / "c.npz"), foreign)
    own(tmp_path, tmp_path / "a.safetensors", tmp_path / "ours", {"rename": "raw.toml"})
    own(tmp_path, tmp_path / "ours", tmp_path / "d.pt", {"rename_back": "raw.toml"})
    assert same(read_tensors(tmp_path / "d.pt"), foreign)


ALIASED = """
from flax import nnx


class Net(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.fc = nnx.Linear(4, 3, rngs=rngs)
        self.again = self.fc
"""


def test_a_layer_under_two_names(tmp_path):
    """torch's state_dict has a key for each; either is enough, and both are written."""
    (tmp_path / "own_aliased_model.py").write_text(ALIASED)
    (tmp_path / "my.toml").write_text('class = "own_aliased_model:Net"\n\n[variants.small]\n')
    layer = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.ones(3, np.float32)}
    both = {f"{name}.{k}": v for name in ("fc", "again") for k, v in layer.items()}
    for i, name in enumerate(("fc", "again", "")):
        write_tensors(tmp_path / f"{i}.pt", {k: v for k, v in both.items() if k.startswith(name)})
        conversion(str(tmp_path / f"{i}.pt"), str(tmp_path / f"{i}"), model=str(tmp_path / "my.toml"))
        report = conversion(str(tmp_path / f"{i}"), str(tmp_path / f"{i}.safetensors"))
        assert same(read_tensors(tmp_path / f"{i}.safetensors"), both)
        assert len(report.tied) == 2
    write_tensors(tmp_path / "bad.pt", {**both, "again.bias": layer["bias"] + 1})
    with pytest.raises(ConversionError, match="but the model ties them"):
        conversion(str(tmp_path / "bad.pt"), str(tmp_path / "x"), model=str(tmp_path / "my.toml"))


def test_a_constant_that_is_another_is_refused(tmp_path, foreign):
    foreign["mask"][0, 1] = True
    write_tensors(tmp_path / "bad.safetensors", foreign)
    with pytest.raises(ConversionError, match="mask: it is not the constant"):
        own(tmp_path, tmp_path / "bad.safetensors", tmp_path / "x", {"rename": "rules.toml"})
    assert not (tmp_path / "x").exists()


def test_prefixes_and_allowances(tmp_path, weights):
    wrapped = {f"module.{k}": v for k, v in weights.items()}
    wrapped |= {"module.extra.weight": np.ones((2, 2), np.float32)}
    del wrapped["module.network.0.weight"]
    write_tensors(tmp_path / "a.pt", wrapped)
    source, missing = str(tmp_path / "a.pt"), ("network.0.*",)
    with pytest.raises(ConversionError, match=r"missing: network\.0\.weight.*unexpected: extra\.weight"):
        conversion(source, str(tmp_path / "b.pt"), **MLP, changes=Changes(strip_prefix="module."))
    with pytest.raises(ConversionError, match="no tensor begins with 'model'"):
        conversion(source, str(tmp_path / "b.pt"), **MLP, changes=Changes(strip_prefix="model"))
    changes = Changes(strip_prefix="module.", allow_missing=missing, allow_unexpected=("extra.*",))
    report = conversion(source, str(tmp_path / "b.safetensors"), **MLP, changes=changes)
    assert report.dropped == {"extra.weight": "--allow-unexpected extra.*"}
    assert report.missing == {"network.0.weight": "not written"}
    left = {k: v for k, v in weights.items() if k != "network.0.weight"}
    assert same(read_tensors(tmp_path / "b.safetensors"), left)
    assert report.renamed["network.0.bias"] == ["module.network.0.bias"]
    report = conversion(source, str(tmp_path / "folder"), **MLP, changes=changes)
    assert report.missing == {"network.0.weight": "as the constructor makes it, from seed 0"}
    conversion(str(tmp_path / "folder"), str(tmp_path / "c.safetensors"))
    first = to_state_dict(catalog.create_model("mlp", "tiny"))["network.0.weight"]
    assert same(read_tensors(tmp_path / "c.safetensors"), {**left, "network.0.weight": first})
    assert any("missing" in line for line in report.lines())


def test_tied_weights_of_any_model(tmp_path, weights):
    write_tensors(tmp_path / "a.pt", {**weights, "copy.weight": weights["network.0.weight"]})
    report = conversion(str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), **MLP)
    assert report.tied == {"copy.weight": "network.0.weight"}
    assert same(read_tensors(tmp_path / "b.safetensors"), weights)


# ---------------------------------------------------------------------------------------------------- dtypes


def test_casts_are_named_and_bitwise_those_of_torch(tmp_path, file, weights):
    report = conversion(str(file), str(tmp_path / "b.safetensors"), **MLP, changes=Changes(dtype="bf16"))
    again = read_tensors(tmp_path / "b.safetensors")
    floats = [k for k, v in weights.items() if v.dtype.kind == "f"]
    assert set(report.cast) == set(floats)
    assert {b for _, b in report.cast.values()} == {"BF16"}
    for key in floats:
        expected = torch.from_numpy(weights[key]).bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(again[key].view(np.int16), expected)
    assert again["network.1.num_batches_tracked"].dtype == weights["network.1.num_batches_tracked"].dtype
    assert "cast" in "\n".join(report.lines())


def test_rounding_to_nearest_even_and_overflow():
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values[:6] = [1 + 2**-8, 1 + 3 * 2**-8, np.inf, -np.inf, 0.0, 2**-133]  # ties, infinities, a subnormal
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy()
    np.testing.assert_array_equal(narrowed(values, DTYPES["bf16"], "a").view(np.int16), expected)
    assert np.isnan(narrowed(np.array([np.nan], np.float32), DTYPES["f16"], "a")).all()
    for source, target in ((np.float32, "f16"), (np.float32, "bf16"), (np.float64, "f32")):
        value = np.array([1.0, np.finfo(source).max], source)
        with pytest.raises(ConversionError, match=r"layer\.weight holds .*e\+\d+, which .*float"):
            cast("layer.weight", Tensor.of(value), DTYPES[target]).read()
    for value in (np.ones(3, ml_dtypes.float8_e4m3fn), np.ones(3, np.int32)):
        tensor = Tensor.of(value)
        assert cast("a", tensor, DTYPES["bf16"]) is tensor


def test_an_overflow_leaves_no_target(tmp_path, weights):
    weights["network.0.weight"] = weights["network.0.weight"].astype(np.float32) + 1e6
    write_tensors(tmp_path / "a.safetensors", weights)
    changes = Changes(dtype="f16")
    with pytest.raises(ConversionError, match=r"network\.0\.weight holds 1e\+06"):
        conversion(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), **MLP, changes=changes)
    assert sorted(p.name for p in tmp_path.iterdir() if "b.safe" in p.name) == []


def test_what_a_training_loop_saves_beside_the_weights(tmp_path, weights):
    """Numbers are carried as metadata through every format that has it; other entries are named."""
    tensors = {k: torch.from_numpy(v) for k, v in weights.items()}
    content = {
        "epoch": 7,
        "model": tensors,
        "ema": tensors,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}},
    }
    torch.save(content, tmp_path / "a.ckpt")
    report = conversion(str(tmp_path / "a.ckpt"), str(tmp_path / "ours"), **MLP)
    notes = "\n".join(report.notes)
    for said in ("those under 'model'", "left out: 'ema'", "left out: 'optimizer'"):
        assert said in notes
    assert report.carried == ["metadata epoch"]
    torch.save({**content, "ema": {k: v + 1 for k, v in tensors.items()}}, tmp_path / "e.ckpt")
    conversion(str(tmp_path / "e.ckpt"), str(tmp_path / "e.npz"), **MLP, part="ema")
    assert same(read_tensors(tmp_path / "e.npz"), {k: v + 1 for k, v in weights.items()})
    with pytest.raises(ConversionError, match="has no part 'emma'"):
        conversion(str(tmp_path / "e.ckpt"), str(tmp_path / "f.npz"), **MLP, part="emma")
    with pytest.raises(UsageError, match="takes one set of weights out of a file"):
        conversion(str(tmp_path / "ours"), str(tmp_path / "f.npz"), part="ema")
    conversion(str(tmp_path / "ours"), str(tmp_path / "b.safetensors"))
    with open_tensors(tmp_path / "b.safetensors") as reader:
        assert reader.metadata["epoch"] == "7"
    report = conversion(str(tmp_path / "ours"), str(tmp_path / "c.pt"))
    assert report.left == {"metadata epoch": "this kind of file has none"}
    assert same(read_tensors(tmp_path / "c.pt"), weights)


def test_a_folder_of_shards_without_a_config(tmp_path, weights):
    write_tensors(tmp_path / "in" / "model.safetensors", weights, shard_bytes=1000)
    conversion(str(tmp_path / "in"), str(tmp_path / "b.pt"), **MLP)
    assert same(read_tensors(tmp_path / "b.pt"), weights)


# --------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("b.safetensor", r"did you mean \.safetensors"),
        ("b.safetensorss", r"did you mean \.safetensors"),
        ("b.onnx", "no file of that kind can be written"),
        ("b.msgpack", "no file of that kind can be written"),
        ("b.h5", "known: .safetensors, .pt"),
    ],
)
def test_a_mistyped_suffix_makes_no_folder(tmp_path, file, target, says):
    with pytest.raises(UsageError, match=says):
        conversion(str(file), str(tmp_path / target), **MLP)
    assert not (tmp_path / target).exists()


def test_existing_targets_and_force(tmp_path, file, weights):
    for name in ("b.safetensors", "folder"):
        target = str(tmp_path / name)
        conversion(str(file), target, **MLP)
        with pytest.raises(ConversionError, match="exists: choose a new name, or --force"):
            conversion(str(file), target, **MLP)
        conversion(str(file), target, **MLP, changes=Changes(dtype="f32"), force=True)
    assert read_tensors(tmp_path / "b.safetensors")["network.0.bias"].dtype == np.float32
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ConversionError, match="holds something else than weights"):
        conversion(str(file), str(tmp_path / "mine"), **MLP, force=True)
    for target in (str(file), str(tmp_path)):
        with pytest.raises(ConversionError, match=r"is the source or holds it|holds something else"):
            conversion(str(file), target, **MLP, force=True)
    assert same(read_tensors(file), weights)
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ConversionError, match="is no regular file"):
        conversion(str(file), str(tmp_path / "pipe.pt"), **MLP, force=True)


def test_overwritten_shards_leave_nothing_behind(tmp_path, file, weights):
    """One file over shards, shards over one file, fewer shards over more; each is an existing target before."""
    target, index = tmp_path / "b.safetensors", tmp_path / "b.safetensors.index.json"
    counts = []
    for size in ("1KB", "2KB", None, "1KB"):
        if counts:
            with pytest.raises(ConversionError, match=r"b\.safetensors(\.index\.json)? exists"):
                conversion(str(file), str(target), **MLP, shard_size=size)
        conversion(str(file), str(target), **MLP, shard_size=size, force=True, verify=True)
        assert target.exists() == (size is None) != index.exists()
        assert same(read_tensors(index if size else target), weights)
        counts.append(len(list(tmp_path.glob("b-*.safetensors"))))
    assert counts[0] == counts[3] > counts[1] > counts[2] == 0


@pytest.mark.parametrize("kind", ["file", "shards", "hub"])
def test_what_was_written_is_compared_when_it_is_read(tmp_path, weights, kind):
    arguments = catalog.arguments("mlp", "tiny")
    if kind == "hub":
        arguments, weights = (
            catalog.arguments("gpt2", "tiny"),
            to_state_dict(catalog.create_model("gpt2", "tiny")),
        )
        write_hub(tmp_path / "a", "gpt2", arguments, weights)
        path, damaged = tmp_path / "a", tmp_path / "a" / "model.safetensors"
    else:
        path = damaged = tmp_path / "a.safetensors"
        write_tensors(path, weights, shard_bytes=1000 if kind == "shards" else None)
        if kind == "shards":
            path, damaged = (
                tmp_path / "a.safetensors.index.json",
                next(iter(tmp_path.glob("a-*.safetensors"))),
            )
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(ConversionError, match="has other bytes than were written"):
        read_tensors(path)


def test_shards_dry_run_verify_and_json(tmp_path, file, weights, capsys):
    args = ["convert", str(file), str(tmp_path / "b.safetensors"), "--model", "mlp", "--variant", "tiny"]
    before = sorted(tmp_path.iterdir())
    assert main([*args, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.iterdir()) == before
    assert plan["bytes"] == sum(v.nbytes for v in weights.values())
    assert any("nothing was written" in n for n in plan["notes"])
    assert main([*args, "--shard-size", "1KB", "--verify", "--json", str(tmp_path / "r.json")]) == 0
    assert "verified: 16 tensors" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verified"]
    assert report["tensors"]["network.0.weight"]["shape"] == [16, 10]
    assert len(list(tmp_path.glob("b-*.safetensors"))) > 2
    assert same(read_tensors(tmp_path / "b.safetensors.index.json"), weights)
    (tmp_path / "notes.json").write_text("{}")
    assert main([*args, "--force", "--json", str(tmp_path / "notes.json")]) == 2
    assert "was not written by this command" in capsys.readouterr().err


SIZES = {"vocab_size": 128_256, "n_positions": 8192, "n_embd": 8192, "n_layer": 80, "n_head": 64}


def sparse_folder(path):
    """A folder of 131 GB in bfloat16 whose shards have holes in place of numbers."""
    model = nnx.eval_shape(lambda: catalog.create_model("gpt2", "small", **SIZES))
    leaves, weight_map = state.flat(nnx.state(model, nnx.Not(nnx.RngState))), {}
    path.mkdir()
    for number, row in enumerate(layout(model)):
        shape, file = list(leaves[row.path].shape), f"model-{number % 30:05}-of-00030.safetensors"
        assert row.perm is None or shape[0] == shape[1]
        weight_map.setdefault(file, {})[row.torch] = {"dtype": "BF16", "shape": shape}
    for file, header in weight_map.items():
        start = 0
        for entry in header.values():
            size = 2 * math.prod(entry["shape"])
            entry["data_offsets"] = [start, start := start + size]
        text = json.dumps(header).encode()
        with open(path / file, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + start)
    index = {"weight_map": {k: file for file, header in weight_map.items() for k in header}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **SIZES}
    (path / "config.json").write_text(json.dumps(config))


def test_a_model_of_131_gb_is_planned_in_seconds(tmp_path):
    sparse_folder(tmp_path / "big")
    start = time.perf_counter()
    report = conversion(f"hf:{tmp_path / 'big'}", f"hf:{tmp_path / 'out'}", dry_run=True, shard_size="10GB")
    assert time.perf_counter() - start < 30  # two, on an idle machine
    assert report.size > 130e9
    assert "14 files of at most 10,000,000,000 bytes" in report.notes
    assert not (tmp_path / "out").exists()


def test_settings_and_sizes():
    parsed = parse_settings(["model.d=7", "name=x", "flag=true", "sizes=[1, 2]", "rate=1e-3"])
    assert parsed == {"d": 7, "name": "x", "flag": True, "sizes": [1, 2], "rate": 1e-3}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_settings(["d"])
    assert [parse_size(s) for s in ("5GB", "200 MiB", "1000", None)] == [5 * 10**9, 200 << 20, 1000, None]
    for text in ("0", "-1", "5XB", "many"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(text)


def test_sizes_outside_the_page(tmp_path):
    settings = {"hidden_dims": [7, 9], "output_dim": 2}
    weights = to_state_dict(catalog.create_model("mlp", "tiny", **settings))
    write_tensors(tmp_path / "a.pt", weights)
    with pytest.raises(ConversionError, match="has shape"):
        conversion(str(tmp_path / "a.pt"), str(tmp_path / "b"), **MLP)
    conversion(str(tmp_path / "a.pt"), str(tmp_path / "b"), **MLP, settings=settings)
    conversion(str(tmp_path / "b"), str(tmp_path / "c.pt"))
    assert same(read_tensors(tmp_path / "c.pt"), weights)


# ------------------------------------------------------------------------------------- folders of the Hub


def test_what_lies_beside_the_weights_goes_hub_orbax_hub(tmp_path):
    """Tokenizer, generation_config, README, licence, metadata: bit for bit, or named; strangers' code never."""
    arguments = catalog.arguments("gpt2", "tiny")
    weights = to_state_dict(catalog.create_model("gpt2", "tiny"))
    hub = tmp_path / "hub"
    write_hub(hub, "gpt2", arguments, weights, {"auto_map": {"AutoModel": "evil.Evil"}, "task": "x"})
    (hub / "checksums.json").unlink()
    (hub / "model.safetensors").unlink()
    write_tensors(hub / "model.safetensors", weights, {"trained_by": "a stranger"})
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Evil"}}))
    texts = {"tokenizer.json": b"{}", "README.md": b"# It\n", "LICENSE": b"MIT", "spiece.model": b"\x00\xfe"}
    texts |= {"generation_config.json": b'{"a": 1}'}
    for name, content in texts.items():
        (hub / name).write_bytes(content)
    (hub / "evil.py").write_text("raise SystemExit")
    report = conversion(f"hf:{hub}", str(tmp_path / "ours"))
    assert {*texts, "metadata trained_by"} <= set(report.carried)
    assert set(report.left) == {"evil.py", "config.json auto_map"}
    report = conversion(str(tmp_path / "ours"), f"hf:{tmp_path / 'back'}", verify=True)
    assert {*texts, "metadata trained_by"} <= set(report.carried)
    for name, content in texts.items():
        assert (tmp_path / "back" / name).read_bytes() == content
    assert not (tmp_path / "back" / "evil.py").exists()
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert "auto_map" not in again
    assert again["task"] == "x"
    with read_hub(tmp_path / "back") as folder:
        assert folder.reader.metadata["trained_by"] == "a stranger"
        assert same({k: t.read() for k, t in folder.tensors.items()}, weights)
    report = conversion(str(tmp_path / "ours"), str(tmp_path / "one.pt"))
    assert report.left["tokenizer.json"] == "the target is one file"
    (tmp_path / "ours" / "hub" / "tokenizer.json").write_text("[]")
    with pytest.raises(ConversionError, match=r"tokenizer\.json is damaged or edited"):
        conversion(str(tmp_path / "ours"), f"hf:{tmp_path / 'back2'}")
    assert not (tmp_path / "back2").exists()


WITHOUT_X64 = """
import sys, numpy as np, ml_dtypes
from jaxarch.commands.convert import conversion
from jaxarch.convert.pipeline import Changes
source, folder = sys.argv[1:]
model = dict(model="mlp", variant="tiny")
conversion(source, folder + "/ours", **model, verify=True)
conversion(folder + "/ours", folder + "/b.safetensors", verify=True)
conversion(folder + "/b.safetensors", folder + "/c.npz", **model, changes=Changes(dtype="bf16"))
conversion("hf:" + folder + "/hub", folder + "/ours2", verify=True)
conversion(folder + "/ours2", "hf:" + folder + "/back", verify=True)
"""


def test_in_a_process_without_x64_no_bit_is_lost(tmp_path, weights):
    """Counters beyond 32 bits and float64 weights, from a file through a checkpoint and back."""
    weights["network.1.num_batches_tracked"] = np.array(2**40 + 7)
    weights = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in weights.items()}
    write_tensors(tmp_path / "a.safetensors", weights)
    gpt2 = to_state_dict(catalog.create_model("gpt2", "tiny"))  # float64, as x64 is on here
    write_hub(tmp_path / "hub", "gpt2", catalog.arguments("gpt2", "tiny"), gpt2)
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_ENABLE_X64", "XLA_FLAGS")}
    args = [sys.executable, "-c", WITHOUT_X64, str(tmp_path / "a.safetensors"), str(tmp_path)]
    done = subprocess.run(args, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(read_tensors(tmp_path / "b.safetensors"), weights)
    assert read_tensors(tmp_path / "c.npz")["network.0.bias"].dtype == ml_dtypes.bfloat16
    assert gpt2["transformer.wte.weight"].dtype == np.float64
    assert same(read_tensors(tmp_path / "back" / "model.safetensors"), gpt2)
