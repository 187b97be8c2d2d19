"""What an extra installs is asked for by name, and a call that lacks it says which extra to install."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxarch.errors import UsageError, require, require_torch

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(UsageError) as error:
        require("networkx", "graph", "to_networkx")
    assert str(error.value) == "to_networkx needs networkx: pip install 'jaxarch[graph]'"
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match=r"^parity needs torch: pip install 'jaxarch\[torch\]'$"):
        require_torch("parity")


def test_an_installed_package_is_returned():
    assert require("json", "none", "a test") is importlib.import_module("json")
    assert require("xml.dom", "none", "a test") is importlib.import_module("xml.dom")


def test_what_an_installed_package_lacks_is_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "half_installed.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        require("half_installed", "viz", "a test")


def test_all_holds_every_extra_of_a_user():
    named = EXTRAS["all"][0].removeprefix("jaxarch[").removesuffix("]").split(",")
    assert sorted(named) == sorted(set(EXTRAS) - {"all", "dev", "test"})


LACKING = {
    # what is missing -> the extra, and calls that need it
    "PIL": ("viz", ["show", "cnn", "--features", "x.png"]),
    "matplotlib": ("viz", ["sample", "runs/none"]),
    "jinja2": ("viz", ["parity", "mlp", "--html", "x.html"]),
    "transformers": ("hub", ["demo"]),
    "tokenizers": ("hub", ["train", "advanced_transformer"]),
    "jraph": ("graph", ["train", "gnn"]),
    "networkx": ("recipes", ["train", "graph_generator"]),
    "sklearn": ("recipes", ["train", "mlp"]),
    "rdkit": ("recipes", ["train", "gnn", "--recipe", "molecules"]),
    "statsmodels": ("recipes", ["train", "gru_forecaster"]),
}


@pytest.mark.parametrize("package", LACKING)
def test_a_command_names_the_extra_that_it_lacks(package, tmp_path):
    extra, arguments = LACKING[package]
    code = f"import sys; sys.modules[{package!r}] = None; from jaxarch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    (line,) = done.stderr.strip().splitlines()
    assert (done.returncode, line.startswith("jaxarch: error: ")) == (2, True), line
    assert f"needs {package}: pip install 'jaxarch[{extra}]'" in line
    assert not list(tmp_path.iterdir())
