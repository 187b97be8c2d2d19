"""The two packages are file for file, class for class, argument for argument the same. No test names an
architecture."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def stems(folder, pattern="*.py"):
    return {p.stem for p in (ROOT / folder).glob(pattern)} - {"__init__"}


TWINS = sorted(
    f"{room}/{stem}"
    for room in ("models", "nn")
    for stem in stems(f"jaxarch/{room}") & stems(f"torchref/{room}")
)


def tree(package, twin):
    return ast.parse((ROOT / package / f"{twin}.py").read_text())


def classes(package, twin):
    return [
        n.name for n in tree(package, twin).body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")
    ]


def loaded(package, twin, name):
    return getattr(importlib.import_module(f"{package}.{twin.replace('/', '.')}"), name)


def test_same_files():
    assert stems("jaxarch/models") == stems("torchref/models") == stems("configs", "*.toml")
    assert stems("torchref/nn") <= stems("jaxarch/nn")


def test_files_without_a_twin_hold_layers_of_torch_itself():
    import torch

    from jaxarch import nn
    from torchref import nn as reference

    alone = {f"jaxarch.nn.{s}" for s in stems("jaxarch/nn") - stems("torchref/nn")}
    layers = {k for k, v in vars(nn).items() if isinstance(v, type) and v.__module__ in alone}
    assert len(layers) > 20
    assert not {k for k in layers if getattr(reference, k) is not getattr(torch.nn, k, None)}


# The machinery under a layer has its own shape in each framework; what a user builds has not.
INTERNAL = {"Recurrent"}


@pytest.mark.parametrize("twin", TWINS)
def test_same_classes_in_the_same_order(twin):
    ours = [c for c in classes("jaxarch", twin) if c not in INTERNAL]
    assert ours == classes("torchref", twin)


@pytest.mark.parametrize("twin", TWINS)
def test_same_constructors(twin):
    for name in classes("torchref", twin):
        ours, theirs = loaded("jaxarch", twin, name), loaded("torchref", twin, name)
        if dataclasses.is_dataclass(theirs):
            fields = [
                [(f.name, str(f.type), f.default) for f in dataclasses.fields(c)] for c in (ours, theirs)
            ]
            assert fields[0] == fields[1], name
            continue
        if "__init__" not in vars(theirs) and "__init__" not in vars(ours):
            continue
        a = dict(inspect.signature(ours.__init__).parameters)
        b = dict(inspect.signature(theirs.__init__).parameters)
        rngs = a.pop("rngs", None)
        assert rngs is None or rngs.kind is inspect.Parameter.KEYWORD_ONLY, name
        assert [(k, p.default, p.kind) for k, p in a.items()] == [
            (k, p.default, p.kind) for k, p in b.items()
        ], name


@pytest.mark.parametrize("twin", [t for t in TWINS if t.startswith("models/")])
def test_model_files(twin):
    for package in ("jaxarch", "torchref"):
        text = (ROOT / package / f"{twin}.py").read_text()
        assert len(text.splitlines()) <= 250
        assert ast.get_docstring(ast.parse(text))
    allowed = {"jaxarch", "jaxarch.errors"}
    found = {m for m in imports(tree("jaxarch", twin)) if m.split(".")[0] == "jaxarch"}
    found = {m for m in found if not m.startswith("jaxarch.models.")}  # a model may hold another
    assert found <= allowed


def imports(node, *, top_only=False):
    nodes = node.body if top_only else ast.walk(node)
    found = set()
    for n in nodes:
        if isinstance(n, ast.Import):
            found |= {a.name for a in n.names}
        elif isinstance(n, ast.ImportFrom) and n.module:
            found.add(n.module)
    return found


def by_name(module):
    """The packages of modules that `importlib.import_module` imports."""
    calls = [n for n in ast.walk(module) if isinstance(n, ast.Call) and "import_module" in ast.dump(n.func)]
    strings = [s.value for c in calls for a in c.args for s in ast.walk(a) if isinstance(s, ast.Constant)]
    return {s.split(".")[0] for s in strings if isinstance(s, str)}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def test_walls():
    for file in files("jaxarch"):
        module = ast.parse(file.read_text())
        at_import = {m.split(".")[0] for m in imports(module, top_only=True)}
        assert not at_import & {"torch", "torchref"}, file
        anywhere = {m.split(".")[0] for m in imports(module)}
        # The reference is imported through one door; the demo's command still has its own.
        assert "torchref" not in anywhere | by_name(module) or file.name in ("reference.py", "cli.py"), file
    for file in files("torchref"):
        anywhere = {m.split(".")[0] for m in imports(ast.parse(file.read_text()))}
        assert not anywhere & {"jax", "jaxlib", "flax", "optax", "jaxarch", "configs"}, file


@pytest.mark.parametrize("package", ["jaxarch.nn", "torchref.nn"])
def test_no_name_shadows_its_module(package):
    room = importlib.import_module(package)
    assert not {s for s in stems(package.replace(".", "/")) if not inspect.ismodule(getattr(room, s))}


def test_kernels_import_no_layer():
    for file in files("jaxarch/nn/kernels"):
        ours = {m for m in imports(ast.parse(file.read_text())) if m.split(".")[0] == "jaxarch"}
        assert not {m for m in ours if not m.startswith(("jaxarch.nn.kernels", "jaxarch.errors"))}, file


def test_every_layer_of_ours_is_in_torchref():
    from jaxarch import nn
    from torchref import nn as reference

    ours = {k for k, v in vars(nn).items() if isinstance(v, type) and issubclass(v, nn.Module)}
    assert not {k for k in ours if not hasattr(reference, k)} - {"Module"}


def test_same_parameter_names(case):
    from flax import nnx

    from jaxarch import catalog
    from jaxarch.convert.layout import layout

    theirs = catalog.create_model(case.name, case.variant, package="torchref")
    ours = nnx.eval_shape(lambda: catalog.create_model(case.name, case.variant))
    rows = layout(ours)
    assert {r.torch for r in rows} == set(theirs.state_dict())
    # No table: the path itself is the key.
    assert all(r.path == r.torch for r in rows)
