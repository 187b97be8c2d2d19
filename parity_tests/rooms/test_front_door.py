"""What a plain `import jaxarch` offers and costs, and the two names of the command."""

import subprocess
import sys

import pytest

import jaxarch


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, timeout=300)


def test_a_plain_import_imports_neither_framework():
    code = (
        "import sys, jaxarch; dir(jaxarch); heavy = {'jax', 'flax', 'numpy', 'torch', 'torchref', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "convert.load_state_dict",
        "parity.check",
        "train.losses.cross_entropy",
        "train.fit",
        "memory.keep_freed_memory",
    ],
)
def test_what_the_readme_shows_needs_no_import_of_its_own(name):
    code = f"import sys, jaxarch; assert callable(jaxarch.{name}); assert 'torch' not in sys.modules"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_public_submodule_is_an_attribute():
    expected = {
        "autodiff",
        "convert",
        "data",
        "generate",
        "losses",
        "models",
        "nn",
        "optim",
        "parallel",
        "peft",
    }
    assert expected <= set(dir(jaxarch))
    assert {"create_model", "list_models", "__version__"} <= set(dir(jaxarch))
    assert not any(name.startswith("_") and not name.startswith("__") for name in dir(jaxarch))
    assert all(getattr(jaxarch, name).__name__ == f"jaxarch.{name}" for name in expected)


def test_an_unknown_attribute_names_the_nearest():
    with pytest.raises(
        AttributeError, match=r"'jaxarch' has no attribute 'convrt': did you mean 'convert'\?"
    ):
        jaxarch.convrt  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'convrt'"):
        from jaxarch import convrt  # noqa: F401


def test_the_command_has_two_names_and_a_version():
    done = python("-m", "jaxarch", "--version")
    assert (done.returncode, done.stdout) == (0, f"jaxarch {jaxarch.__version__}\n")
    done = python("-m", "jaxarch", "lst")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'list'" in done.stderr


def test_choosing_a_command_imports_no_other():
    code = (
        "import sys; from jaxarch.cli import main; assert main(['list']) == 0\n"
        "commands = [m for m in sys.modules if m.startswith('jaxarch.commands.')]\n"
        "assert commands == ['jaxarch.commands.list'], commands; assert 'jax' not in sys.modules"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
