"""A fifth architecture is three files, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGE = """
class = "GatedMLP"
family = "vision"
paper = "Dauphin et al. 2017, arXiv:1612.08083"
names = "own"

[variants.tiny]
width = 6
classes = 3

[inputs.x]
kind = "features"
shape = [5, "width"]
"""

TORCH = '''
"""A gated layer with a norm."""

from torch import Tensor

from torchref import nn


class GatedMLP(nn.Module):
    """(B, width) -> (B, classes)."""

    def __init__(self, width: int, classes: int, dropout: float = 0.2):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(width, 2 * width)
        self.activation = nn.Activation("sigmoid")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(self.dropout(self.value(x) * self.activation(self.gate(x))))
'''

JAX = (
    TORCH.replace("from torch import Tensor", "from flax import nnx")
    .replace("from torchref import nn", "from jaxarch import nn")
    .replace("        super().__init__()\n", "")
    .replace("dropout: float = 0.2)", "dropout: float = 0.2, *, rngs: nnx.Rngs)")
    .replace("def forward(self, x: Tensor) -> Tensor:", "def __call__(self, x):")
    .replace("width)\n", "width, rngs=rngs)\n")
    .replace("(dropout)", "(dropout, rngs=rngs)")
    .replace("classes)\n", "classes, rngs=rngs)\n")
)


def snapshot(folder):
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_three_files(tmp_path):
    for room in ("jaxarch", "torchref", "configs"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = snapshot(tmp_path)
    (tmp_path / "configs/gated_mlp.toml").write_text(PAGE)
    (tmp_path / "torchref/models/gated_mlp.py").write_text(TORCH)
    (tmp_path / "jaxarch/models/gated_mlp.py").write_text(JAX)
    assert len(snapshot(tmp_path) - before) == 3

    def run(*args):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "jaxarch.cli", *args]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert "gated_mlp" in {row["name"] for row in json.loads(run("list", "--json"))}
    (result,) = json.loads(run("parity", "gated_mlp", "--json"))
    assert (result["name"], result["variant"], result["ok"]) == ("gated_mlp", "tiny", True)
    assert "gated_mlp tiny: 219 parameters" in run("show", "gated_mlp")
    weights = tmp_path / "w.safetensors"
    code = (
        "import sys; from jaxarch import create_model; from jaxarch.convert import to_state_dict\n"
        "from jaxarch.convert.files import write_tensors\n"
        "write_tensors(sys.argv[1], to_state_dict(create_model('gated_mlp')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(weights)], cwd=tmp_path, env=environment, check=True)
    run("convert", str(weights), str(tmp_path / "w.pt"), "--model", "gated_mlp", "--variant", "tiny")
