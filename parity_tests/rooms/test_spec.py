"""What a page may say, and what is refused."""

from pathlib import Path

import pytest

from jaxarch import spec
from jaxarch.errors import UsageError

PAGE = """
class = "Gate"
family = "vision"
paper = "Dauphin et al. 2017, arXiv:1612.08083"
{names}

[variants.tiny]
width = 6
"""


@pytest.mark.parametrize("names", spec.NAMES)
def test_whose_keys_a_model_has(tmp_path: Path, names: str) -> None:
    file = tmp_path / "gate.toml"
    file.write_text(PAGE.format(names=f'names = "{names}"'))
    assert spec.read_page(file).names == names


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            'names = "hugginface"',
            "unknown names in configs/gate.toml 'hugginface': did you mean 'huggingface'",
        ),
        ('names = "the hub\'s"', 'unknown names in configs/gate.toml "the hub\'s"'),
        ("", "configs/gate.toml lacks names"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, names: str, says: str) -> None:
    file = tmp_path / "gate.toml"
    file.write_text(PAGE.format(names=names))
    with pytest.raises(UsageError) as error:
        spec.read_page(file)
    assert str(error.value).startswith(says)
