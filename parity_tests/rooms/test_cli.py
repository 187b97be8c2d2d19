"""The command as a user meets it: what it prints, what it refuses, and with which exit status."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxarch import catalog
from jaxarch.cli import main

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = (
    "import sys\n"
    "class Block:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in ('torch', 'torchref'):\n"
    "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    "sys.meta_path.insert(0, Block())\n"
    "from jaxarch.cli import main\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def run(*args, cwd=None, code=None, timeout=300):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "jaxarch.cli"]
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_ENABLE_X64", "XLA_FLAGS")}
    return subprocess.run(
        [*command, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


def failure(capsys, *args):
    """Exit status and the one line on stderr of a call that must fail."""
    try:
        status = main([str(a) for a in args])
    except SystemExit as e:
        status = e.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return status, lines[0]


def test_list_is_json(capsys):
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == list(catalog.list_models())
    assert all(set(r) == {"name", "class", "family", "paper", "variants"} for r in rows)
    assert main(["list", "--family", "vision", "--json"]) == 0
    assert {r["family"] for r in json.loads(capsys.readouterr().out)} == {"vision"}


def test_show_counts_parameters(capsys, name):
    from flax import nnx

    from jaxarch import state

    variant = catalog.page(name).cases[0]
    assert main(["show", name, "--variant", variant]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    params = state.split(nnx.eval_shape(lambda: catalog.create_model(name, variant))).params
    assert f"{sum(p.size for p in params.values()):,} parameters" in last
    assert " 0 FLOPs" not in last


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["lst"], "did you mean 'list'"),
        (["list", "--jsn"], "did you mean --json"),
        (["list", "--family", "visoin"], "did you mean 'vision'"),
        (["show", "mpl"], "unknown model 'mpl': did you mean 'mlp'"),
        (["show", "mlp", "--variant", "tinny"], "unknown variant of mlp 'tinny': did you mean 'tiny'"),
        (["parity"], "one of the three"),
        (["parity", "mpl"], "unknown model 'mpl'"),
        (["train", "mlp", "--mesh", "dta=2"], "did you mean 'data'"),
        (["train", "mlp", "--mesh", "data=two"], "data=two"),
        (["train", "mlp", "--set", "train.lr"], "KEY=VALUE"),
        (["train", "mlp", "--set", "train.learning_rat=1"], "did you mean 'learning_rate'"),
        (["train", "mlp", "--set", "train.steps=many"], "steps"),
        (["convert", "a.safetensors", "b.pt"], "--model"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere"),
    ],
)
def test_wrong_calls(capsys, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    status, line = failure(capsys, *args)
    assert says in line, line
    assert status == (1 if args[0] == "generate" else 2), line
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_files(capsys, tmp_path):
    call = ("convert", tmp_path / "a.safetensors", tmp_path / "b.pt", "--model", "mlp", "--variant", "tiny")
    status, line = failure(capsys, *call)
    assert (status, "no such file" in line) == (1, True)
    (tmp_path / "a.safetensors").write_bytes(b"damaged")
    status, line = failure(capsys, *call)
    assert (status, "not a readable safetensors file" in line) == (1, True)
    assert not (tmp_path / "b.pt").exists()


def test_convert_every_way_and_back(tmp_path):
    from jaxarch.convert import to_state_dict
    from jaxarch.convert.files import read_tensors, write_tensors

    weights = to_state_dict(catalog.create_model("mlp", "tiny", rngs=3))
    write_tensors(tmp_path / "a.safetensors", weights)
    names = ["a.safetensors", "b.pt", "folder", "c.pth", "folder2", "d.safetensors"]
    for source, target in itertools.pairwise(names):
        args = ["convert", str(tmp_path / source), str(tmp_path / target)]
        assert main([*args, "--model", "mlp", "--variant", "tiny"]) == 0
    again = read_tensors(tmp_path / "d.safetensors")
    assert again.keys() == weights.keys()
    for key, value in weights.items():
        assert again[key].dtype == value.dtype
        assert again[key].tobytes() == value.tobytes()


def test_convert_takes_the_weights_out_of_a_torch_run(capsys, tmp_path):
    from jaxarch.convert import to_state_dict
    from jaxarch.convert.files import read_tensors, write_tensors

    weights = to_state_dict(catalog.create_model("mlp", "tiny", rngs=3))
    write_tensors(tmp_path / "run" / "model.safetensors", weights)
    (tmp_path / "run" / "optimizer.pt").write_bytes(b"not read")
    args = ("convert", str(tmp_path / "run"), str(tmp_path / "a.safetensors"))
    assert main([*args, "--model", "mlp", "--variant", "tiny"]) == 0
    again = read_tensors(tmp_path / "a.safetensors")
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in weights.items()}
    capsys.readouterr()
    status, line = failure(capsys, *args, "--model", "mlp", "--average")
    assert (status, "keeps no average" in line) == (2, True)


def test_convert_refuses_wrong_weights(capsys, tmp_path):
    from jaxarch.convert.files import write_tensors

    write_tensors(tmp_path / "a.safetensors", {"network.0.weight": np.zeros((2, 2))})
    args = ("convert", tmp_path / "a.safetensors", tmp_path / "out", "--model", "mlp", "--variant", "tiny")
    status, line = failure(capsys, *args)
    assert status == 1
    assert "missing: network.0.bias" in line
    assert not (tmp_path / "out").exists()


def test_parity_prints_json(tmp_path):
    done = run("parity", "mlp", "--json", tmp_path / "p.json", "--html", tmp_path / "p.html")
    assert done.returncode == 0, done.stderr + done.stdout
    rows = json.loads((tmp_path / "p.json").read_text())
    keys = {"name", "variant", "weights", "roundtrip", "outputs", "gradients", "training", "seconds", "ok"}
    assert [r["variant"] for r in rows] == list(catalog.page("mlp").cases)
    for row in rows:
        assert keys <= set(row)
        assert row["ok"] is True
        assert all(isinstance(row[k], (int, float)) for k in keys - {"name", "variant", "ok"})
    assert "http" not in (tmp_path / "p.html").read_text().replace("http://www.w3.org", "")


def test_import_brings_no_torch():
    code = "import sys, jaxarch, jaxarch.cli, jaxarch.nn; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_trains_without_torch_and_says_how_to_get_it(tmp_path):
    done = run("train", "mlp", "--set", "train.steps=3", "--out", tmp_path / "run", code=WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    done = run("convert", tmp_path / "run", tmp_path / "a.safetensors", code=WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    for args in (["parity", "mlp"], ["demo"], ["convert", tmp_path / "run", tmp_path / "a.pt"]):
        done = run(*args, code=WITHOUT_TORCH, cwd=tmp_path)
        assert done.returncode == 2
        assert "pip install 'jaxarch[torch]'" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_wheel_holds_the_pages(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    for file in ("jaxarch/py.typed", "torchref/py.typed", "jaxarch-*.dist-info/licenses/LICENSE"):
        assert list((tmp_path / "site").glob(file)), file
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import jaxarch; assert jaxarch.__file__.startswith(sys.path[0]), jaxarch.__file__\n"
        "from jaxarch.cli import main; sys.exit(main(['list', '--json']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [r["name"] for r in json.loads(done.stdout)] == list(catalog.list_models())


@pytest.mark.parametrize("script", ["readme_table", "optimizer_table"])
def test_tables_are_current(script):
    command = [sys.executable, ROOT / f"scripts/{script}.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
