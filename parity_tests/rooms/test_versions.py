"""The pair of jax and flax that does not work is refused before flax is imported; every other pair passes."""

import importlib.metadata
import subprocess
import sys

import pytest

from jaxarch import versions
from jaxarch.errors import UsageError

BROKEN = [
    ("0.11.1", "0.12.8"),
    ("0.12.0.1", "0.12.8"),
    ("0.11.1.dev20260801+cpu", "0.12.7"),
    ("1.0", "0.12.8"),
]
WORKING = [
    ("0.10.2", "0.12.8"),
    ("0.11.0", "0.12.8"),
    ("0.10.2", "0.12.9"),
    ("0.11.1", "0.12.9"),
    ("0.12.0.1", "0.12.12"),
    ("1.0", "1.0rc1"),
]
# flax cannot be imported, as with the pair of the metadata: what imports it before the check fails otherwise.
PACKAGES = ("autodiff", "commands", "convert", "handover", "models", "nn", "optim", "parity", "peft", "train")
# These import flax themselves; after a plain `import jaxarch` the front door checks for them.
ATTRIBUTES = ("bench", "generate", "observe", "state")
FIRST_USE = f"""
import importlib, importlib.metadata, sys

broken = {{"jax": "0.12.0.1", "flax": "0.12.8"}}
version = importlib.metadata.version
importlib.metadata.version = lambda name: broken.get(name) or version(name)
sys.modules["flax"] = None
import jaxarch
from jaxarch.errors import UsageError

for name in {PACKAGES}:
    try:
        importlib.import_module(f"jaxarch.{{name}}")
    except UsageError as error:
        assert "\\n" not in str(error), error
        print(name, error)
for name in {ATTRIBUTES}:
    try:
        getattr(jaxarch, name)
    except UsageError as error:
        print(name, error)
assert "jax" not in sys.modules
"""


def installed(monkeypatch: pytest.MonkeyPatch, jax: str, flax: str) -> None:
    """Let the metadata of the environment name these releases."""
    monkeypatch.setattr(importlib.metadata, "version", {"jax": jax, "flax": flax}.__getitem__)


@pytest.mark.parametrize(("jax", "flax"), BROKEN)
def test_the_broken_pair_is_refused(monkeypatch, jax, flax):
    installed(monkeypatch, jax, flax)
    with pytest.raises(UsageError) as error:
        versions.check_versions()
    assert str(error.value) == f"flax {flax} does not work with jax {jax}: pip install 'flax>=0.12.9'"


@pytest.mark.parametrize(("jax", "flax"), WORKING)
def test_working_pairs_pass(monkeypatch, jax, flax):
    installed(monkeypatch, jax, flax)
    versions.check_versions()


def test_the_installed_pair_passes():
    versions.check_versions()


def test_a_missing_package_is_left_to_its_import(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions.check_versions()


def test_first_use_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    refused = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert refused == dict.fromkeys(
        (*PACKAGES, *ATTRIBUTES), "flax 0.12.8 does not work with jax 0.12.0.1: pip install 'flax>=0.12.9'"
    )
