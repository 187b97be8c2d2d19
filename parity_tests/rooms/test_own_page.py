"""A page outside the package is an architecture: its classes come from the user's own modules."""

import pytest
import torch

from jaxarch import catalog
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import UsageError

MODULE = """
from flax import nnx
import torch


class Net(nnx.Module):
    def __init__(self, width: int, out: int = 3, *, rngs: nnx.Rngs):
        self.fc = nnx.Linear(width, out, rngs=rngs)

    def __call__(self, x):
        return self.fc(x)


class TorchNet(torch.nn.Module):
    def __init__(self, width: int, out: int = 3):
        super().__init__()
        self.fc = torch.nn.Linear(width, out)
"""
PAGE = """
class = "own_page_model:Net"
reference = "own_page_model:TorchNet"

[variants.small]
width = 4
"""


def write(folder, page=PAGE):
    (folder / "own_page_model.py").write_text(MODULE)
    (folder / "my.toml").write_text(page)
    return str(folder / "my.toml")


def test_a_users_own_page_is_an_architecture(tmp_path):
    name = write(tmp_path)
    assert catalog.default_variant(name) == "small"
    assert catalog.arguments(name, "small", {"out": 2}) == {"width": 4, "out": 2}
    ours = catalog.create_model(name, "small", out=2)
    theirs = catalog.create_model(name, "small", out=2, package="torchref")
    load_state_dict(ours, theirs.state_dict())
    back = {k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}
    theirs.load_state_dict(back, strict=True)
    assert name not in catalog.list_models()


WRONG = [
    ("class = 'Net'\n[variants.a]\n", "write class = 'package.module:Class', not 'Net'"),
    ("class = 'no_such_module:Net'\n[variants.a]\n", "no_such_module cannot be imported"),
    ("class = 'own_page_model:Nett'\n[variants.a]\nwidth = 1\n", "own_page_model has no class 'Nett'"),
    ("class = 'own_page_model:Net'\nclas = 1\n[variants.a]\n", "unknown key in .*my.toml 'clas'"),
    ("class = ", "is not TOML"),
]


@pytest.mark.parametrize(("page", "says"), WRONG, ids=[w[1] for w in WRONG])
def test_wrong_pages_are_named(tmp_path, page, says):
    name = write(tmp_path, page)
    with pytest.raises(UsageError, match=says) as e:
        catalog.create_model(name)
    assert "\n" not in str(e.value)
    assert "my.toml" in str(e.value)


def test_a_page_that_is_not_there_or_has_no_reference(tmp_path):
    with pytest.raises(UsageError, match="no such page"):
        catalog.page(str(tmp_path / "absent.toml"))
    name = write(tmp_path, PAGE.replace("reference", "# reference"))
    with pytest.raises(UsageError, match="has no reference in torch: add reference"):
        catalog.create_model(name, package="torchref")
