"""Models by name from the Hub and onto it, against a stand-in server on the loopback."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hub_server import SHA, Hub, serving
from jaxarch import catalog
from jaxarch.cli import main
from jaxarch.convert import to_state_dict
from jaxarch.convert.fetch import remote_of
from jaxarch.convert.files import read_tensors
from jaxarch.convert.hub import write_hub


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of a model in shards, with a tokenizer, code, and torch's weights that are not needed."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    weights = to_state_dict(catalog.create_model("gpt2", "tiny"))
    # One shard is larger than two blocks of a download.
    rows = np.random.default_rng(0).integers(0, 9, (400_000, 15)).astype(np.float32)
    weights["transformer.wte.weight"] = rows
    write_hub(
        folder,
        "gpt2",
        catalog.arguments("gpt2", "tiny", {"vocab_size": 400_000}),
        weights,
        shard_bytes=10_000,
    )
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sum(k.endswith(".safetensors") for k in files) > 1
    files |= {
        "tokenizer.json": b"{}",
        "modeling.py": b"raise",
        "pytorch_model.bin": b"x" * 100,
        "LICENSE": b"MIT",
    }
    return files


def run(hub, folder, *calls, **environment):
    """Exit status, stdout and stderr of several calls in one process, whose Hub is the stand-in."""
    code = (
        "import io, json, sys, contextlib\nfrom jaxarch.cli import main\nfor args in json.loads(sys.argv[1]):\n"
        " out, err = io.StringIO(), io.StringIO()\n"
        " with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):\n"
        "  status = main(args)\n"
        " print(json.dumps([status, out.getvalue(), err.getvalue()]))\n"
    )
    cleared = (
        "JAX_ENABLE_X64",
        "XLA_FLAGS",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    )
    env = {k: v for k, v in os.environ.items() if k not in cleared and not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_download_only_what_is_needed_resume_and_cache(files, tmp_path):
    shard = max(files, key=lambda k: len(files[k]))
    hub = Hub({"org/model": dict(files)}, token="hf_secret", cut={shard})
    with serving(hub):
        calls = [
            ["convert", f"hf:org/model@{r}", str(tmp_path / f"{i}.safetensors")]
            for i, r in enumerate(("main", SHA))
        ]
        (first, second) = run(hub, tmp_path, *calls, HF_TOKEN="hf_secret")
        assert first[0] == second[0] == 0, (first, second)
        fetched = [p.rpartition("/")[2] for p in hub.paths("GET") if "resolve" in p]
        assert set(fetched) == set(files) - {"modeling.py", "pytorch_model.bin"}
        # The file that broke off was continued, and nothing was read twice.
        assert [k for k in fetched if fetched.count(k) > 1] == [shard, shard]
        assert [r for m, p, r in hub.log if m == "GET" and p.endswith(shard)][1].startswith("bytes=")
        before = len(hub.log)
        call = ["convert", "hf:org/model", str(tmp_path / "offline"), "--verify"]
        (offline,) = run(hub, tmp_path, call, HF_HUB_OFFLINE="1")
        assert offline[0] == 0, offline
        assert "carried: LICENSE, tokenizer.json" in offline[1]
        assert len(hub.log) == before
    a, b = (read_tensors(tmp_path / f"{i}.safetensors") for i in range(2))
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_what_cannot_be_had_is_said_in_one_line(files, tmp_path):
    hub = Hub({"org/model": dict(files), "org/gated": {}}, gated={"org/gated"})
    with serving(hub):
        sources = ("hf:org/absent", "hf:org/gated", "hf:org/model@absent", "hf:org/model@main")
        calls = [["convert", s, str(tmp_path / "x")] for s in sources[:3]]
        results = run(hub, tmp_path, *calls)
        results += run(
            hub, tmp_path / "empty", ["convert", sources[3], str(tmp_path / "x")], HF_HUB_OFFLINE="1"
        )
    says = ("no such model, or no right to it: set HF_TOKEN", "access must be asked for", "no such revision")
    for (status, _, line), said in zip(
        results, (*says, "is not in the cache: unset HF_HUB_OFFLINE"), strict=True
    ):
        assert status == 1
        assert said in line
        assert line.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_push_uploads_a_folder_with_a_card(files, tmp_path):
    """What was pushed is what a download gives; the card cites the figures."""
    for name, content in files.items():
        if not name.endswith((".py", ".bin")):
            (tmp_path / name).write_bytes(content)
    rows = {"name": "gpt2", "ok": True, "bound": 1e-10, "minimum_bound": 3e-15, "weights": 0, "roundtrip": 0}
    rows |= {"variant": "tiny", "outputs": 1e-15, "gradients": 2e-15, "training": 3e-15}
    (tmp_path / "parity.json").write_text(json.dumps([rows]))
    hub = Hub({})
    with serving(hub):
        folder = str(tmp_path / "out")
        push = [
            "push",
            f"hf:{tmp_path}",
            "org/new",
            "--folder",
            folder,
            "--parity",
            str(tmp_path / "parity.json"),
        ]
        back = ["convert", "hf:org/new", str(tmp_path / "back.safetensors")]
        results = run(hub, tmp_path, push, back, HF_TOKEN="hf_secret")
        assert [r[0] for r in results] == [0, 0], results
        assert f"{hub.url}/org/new/commit/{SHA}" in results[0][1]
    pushed = hub.models["org/new"]
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json", "LICENSE"} <= set(pushed)
    card = pushed["README.md"].decode()
    assert "| tiny | 1.0e-15 | 2.0e-15 | 3.0e-15 | exact |" in card
    assert "GPT2LMHeadModel.from_pretrained" in card
    a, b = (
        read_tensors(tmp_path / "back.safetensors"),
        read_tensors(tmp_path / "model.safetensors.index.json"),
    )
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_push_into_a_folder_and_its_refusals(files, tmp_path, capsys):
    source = tmp_path / "model"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    (source / "README.md").write_text("# Theirs\n")
    assert main(["push", f"hf:{source}", "--folder", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Theirs\n")
    assert "Unverified" in card
    capsys.readouterr()
    (tmp_path / "other.json").write_text(
        json.dumps([{"name": "mlp", "variant": "tiny", "ok": True, "minimum_bound": 0, "bound": 1e-10}])
    )
    for args, says in (
        ([], "push needs ORG/NAME"),
        (["a b"], "is not the name of a model"),
        (
            ["--folder", str(tmp_path / "o2"), "--parity", str(tmp_path / "other.json")],
            "the figures are of mlp",
        ),
        (
            ["--folder", str(tmp_path / "o3"), "--parity", str(source / "config.json")],
            "is no report of jaxarch parity",
        ),
    ):
        assert main(["push", f"hf:{source}", *args]) == 2
        assert says in capsys.readouterr().err


def test_names_of_models_and_paths_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert remote_of("hf:org/model@v1.0") == ("org/model", "v1.0")
    assert remote_of("hf:org/model") == ("org/model", None)
    assert remote_of("hf:gpt2@main") == ("gpt2", "main")
    for local in ("hf:org/here", "hf:./org/model", "hf:/org/model", "hf:folder", "org/model"):
        assert remote_of(local) is None
