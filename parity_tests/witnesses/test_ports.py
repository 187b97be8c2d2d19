"""Files of public style, ported by their imports, random keys and axis numbers alone, are the same models.

`ports/` has each of them twice: as written for PyTorch, and as ported.
"""

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxarch import nn
from jaxarch.errors import UsageError
from jaxarch.parity import check

PORTS = Path(__file__).parents[1] / "ports"
NAMES = sorted(p.stem.removesuffix("_torch") for p in PORTS.glob("*_torch.py"))
# Functions and methods whose integers are numbers of axes.
COUNT_AXES = {"cat", "mean", "log_softmax"}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 11, (7, 3))

# file and class -> arguments, inputs in torch's axis order, and the kind of the outputs
CASES = {
    "unet-up": ("unet", "UNet", (3, 4, 4), {"x": RNG.normal(size=(2, 3, 8, 12))}, "image"),
    "unet-bilinear": ("unet", "UNet", (3, 4, 4, True), {"x": RNG.normal(size=(2, 3, 8, 12))}, "image"),
    **{
        f"language-{kind}": (
            "language_model",
            "RNNModel",
            (kind, 11, 5, 6, 2),
            {"tokens": TOKENS},
            "features",
        )
        for kind in ("LSTM", "GRU", "RNN_RELU")
    },
    "transformer": ("transformer", "TransformerModel", (11, 6, 2, 9, 2, 4), {"src": TOKENS}, "features"),
}


class Ported(ast.NodeTransformer):
    """A file without what a port may change."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        node.body = [n for n in node.body[1:] if not isinstance(n, ast.Import | ast.ImportFrom)]
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        kept = [(a, d) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True) if a.arg != "rngs"]
        node.kwonlyargs, node.kw_defaults = [a for a, _ in kept], [d for _, d in kept]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.keywords = [k for k in node.keywords if k.arg != "rngs"]
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in COUNT_AXES:
            axes = [k.value for k in node.keywords if k.arg == "dim"] + node.args
            for axis in axes:
                if isinstance(axis, ast.Tuple) and all(isinstance(e, ast.Constant) for e in axis.elts):
                    axis.elts = [ast.Constant("axis") for _ in axis.elts]
            node.args = [ast.Constant("axis") if _is_number(a) else a for a in node.args]
        return node


def _is_number(node: ast.expr) -> bool:
    try:
        return isinstance(ast.literal_eval(node), int)
    except ValueError:
        return False


def without_permitted_changes(text: str) -> str:
    return ast.unparse(Ported().visit(ast.parse(text)))


def sources(name: str) -> tuple[str, str]:
    theirs, ours = ((PORTS / f"{name}_{package}.py").read_text() for package in ("torch", "jax"))
    return theirs, ours


@pytest.mark.parametrize("name", NAMES)
def test_only_imports_rngs_and_axes_differ(name):
    theirs, ours = sources(name)
    assert theirs != ours
    assert without_permitted_changes(theirs) == without_permitted_changes(ours)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("padding=1", "padding=0"),
        ("MaxPool2d(2)", "MaxPool2d(3)"),
        ("self.head(x3)", "self.head(x2)"),
        ("0.2", "0.3"),
        ("self.up(x)", "self.up(x, 1)"),
    ],
)
def test_another_change_is_found(old, new):
    theirs, ours = sources("unet")
    assert old in ours
    assert without_permitted_changes(theirs) != without_permitted_changes(ours.replace(old, new, 1))


def test_every_file_is_compared():
    assert {file for file, *_ in CASES.values()} == set(NAMES)
    assert len(NAMES) >= 3


FAST = ("unet-up", "language-LSTM", "transformer")


@pytest.mark.parametrize("port", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in CASES])
def test_same_model(port):
    file, name, args, inputs, kind = CASES[port]
    theirs, ours = (importlib.import_module(f"ports.{file}_{package}") for package in ("torch", "jax"))
    kinds = dict.fromkeys(inputs, kind) if kind == "image" else None
    result = check(
        getattr(theirs, name)(*args).double(),
        getattr(ours, name)(*args, rngs=nnx.Rngs(0)),
        inputs,
        kinds=kinds,
        outputs=kind,
    )
    assert result.ok, result.detail


def test_a_module_without_a_call_is_refused():
    class Nothing(nn.Module):
        pass

    with pytest.raises(UsageError, match="Nothing cannot be called: define __call__ or forward"):
        Nothing()(1)
