"""What an extra installs is asked for by name, and a call that lacks it says which extra to install."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from jaxarch.errors import UsageError, require, require_torch

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
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
