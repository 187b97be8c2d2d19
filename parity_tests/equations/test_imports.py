"""The import graph of `jaxarch`: every import runs down or stays on its floor, and there is no circle.

The files are parsed, not imported: imports in functions and those for type checkers count like all others.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "jaxarch"
FRONT_DOOR = "__init__"

# From the ground up; a file belongs to the longest name here that begins its own.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the errors that a user can cause", ("errors",)),
    ("files, arrays and processes, without a model", ("files", "arrays", "runtime", "memory", "versions")),
    ("a model as flat dictionaries, and watching its calls", ("state", "observe")),
    ("what a page says", ("spec",)),
    ("the one door to torchref", ("reference",)),
    ("what exists, by name", ("catalog",)),
    ("arrays in, arrays out", ("nn.kernels",)),
    ("layers, each with its LAYOUT", ("nn",)),
    ("one architecture, one file", ("models",)),
    ("names and layouts of weights, and the files that hold them", ("convert",)),
    ("what training computes and where: optimizers, losses, shardings", ("optim", "losses", "parallel")),
    (
        "what is done with a model from outside, and what both packages have in common",
        ("peft", "autodiff", "decoding", "generate", "diffusion", "gan", "tokenizer", "graphs", "html"),
    ),
    ("examples to train on", ("data",)),
    ("the training of a model", ("train",)),
    ("a whole run between torch and JAX", ("handover",)),
    ("the proof that two models are one", ("parity",)),
    ("the time that both take", ("bench",)),
    ("what a command does", ("commands",)),
    ("names of the package for users", (FRONT_DOOR,)),
    ("what a command is called with", ("cli", "__main__")),
)
REFERENCE = "reference"  # the one file that imports torchref
MAX_LINES, MAX_MODEL_LINES = 400, 250


class Arrow(NamedTuple):
    """One import: the module that imports, its line, and the module that is imported; names within jaxarch."""

    source: str
    line: int
    target: str


def modules(package: Path) -> dict[str, Path]:
    """Module name within the package -> its file; a folder's __init__.py has the folder's name."""
    named = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return named


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(line, module, names imported from it) of every import below a node, by `import_module` too.

    A module that is named as the program runs ends in a dot.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name, ()) for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield node.lineno, module, tuple(alias.name for alias in node.names)
            case ast.ImportFrom():
                yield node.lineno, "." * node.level, ()
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[
                    ast.Constant(value=str(module))
                    | ast.JoinedStr(values=[ast.Constant(value=str(module)), *_])
                ],
            ):
                yield node.lineno, module, ()


def arrows(package: Path) -> list[Arrow]:
    """Every import of a module of the package by another; of a name in a folder's __init__.py, by that file."""
    known = modules(package)
    result = []
    for source, path in known.items():
        for line, module, names in imported_names(ast.parse(path.read_text())):
            assert not module.startswith("."), f"{path}:{line} imports relatively: name the module in full"
            if module.split(".")[0] != "jaxarch" or module.endswith("."):  # a registry looks a name up
                continue
            inner = module.removeprefix("jaxarch").removeprefix(".")
            targets = [f"{inner}.{name}".removeprefix(".") for name in names] or [inner]
            for target in targets:
                while target and target not in known:  # a class or function of that module
                    target = target.rpartition(".")[0]
                result.append(Arrow(source, line, target or FRONT_DOOR))
    return [a for a in result if a.source != a.target]


def floor(module: str) -> int:
    """The number of a module's floor."""
    rooms = {room: number for number, (_, rooms) in enumerate(FLOORS) for room in rooms}
    owners = [room for room in rooms if f"{module}.".startswith(f"{room}.")]
    assert owners, f"jaxarch.{module} is on no floor: give its room a place in FLOORS"
    return rooms[max(owners, key=len)]


def rising(package: Path) -> list[str]:
    """The imports that run up."""
    return [
        f"jaxarch.{a.source}, line {a.line}, imports jaxarch.{a.target}: "
        f"{FLOORS[floor(a.source)][0]!r} is below {FLOORS[floor(a.target)][0]!r}"
        for a in arrows(package)
        if floor(a.target) > floor(a.source)
    ]


def circles(package: Path) -> list[str]:
    """The circles of imports, each from the first of its modules in the order of names."""
    graph: dict[str, set[str]] = {}
    for a in arrows(package):
        graph.setdefault(a.source, set()).add(a.target)
    finished: set[str] = set()
    problems: list[str] = []

    def walk(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            first = circle.index(min(circle))
            problems.append(" -> ".join((*circle[first:], *circle[:first], min(circle))))
        elif module not in finished:
            for target in sorted(graph.get(module, ())):
                walk(target, (*path, module))
            finished.add(module)

    for module in sorted(graph):
        walk(module, ())
    return problems


def torch_imports(package: Path) -> list[str]:
    """Imports of torch when a module is imported, and of torchref elsewhere than in its one door."""
    problems = []
    for module, path in modules(package).items():
        tree = ast.parse(path.read_text())
        for line, name, _ in imported_names(tree):
            if name.split(".")[0] == "torchref" and module != REFERENCE:
                problems.append(f"jaxarch.{module}, line {line}, imports torchref: use jaxarch.{REFERENCE}")
        for statement in at_import(tree):
            for line, name, _ in imported_names(statement):
                if name.split(".")[0] in ("torch", "torchref"):
                    problems.append(f"jaxarch.{module}, line {line}, imports {name} when it is imported")
    return problems


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The simple statements that run when a module is imported: not those of functions, nor for type checkers."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif isinstance(node, ast.stmt) and (hasattr(node, "body") or hasattr(node, "cases")):
            pending += ast.iter_child_nodes(node)
        elif isinstance(node, ast.ExceptHandler | ast.match_case):
            pending += node.body
        else:
            yield node


def too_long(package: Path) -> list[str]:
    """Files with more lines than a reader should have to hold at once."""
    problems = []
    for module, path in modules(package).items():
        count = len(path.read_text().splitlines())
        most = MAX_MODEL_LINES if module.startswith("models.") else MAX_LINES
        if count > most:
            problems.append(f"jaxarch.{module} has {count} lines, at most {most} are allowed")
    return problems


RULES = {"down": rising, "no circle": circles, "torch": torch_imports, "length": too_long}


@pytest.mark.parametrize("rule", RULES)
def test_imports(rule):
    problems = RULES[rule](PACKAGE)
    assert not problems, "\n" + "\n".join(problems)


FAULTS = {
    "up": ("errors.py", "import jaxarch.state\n", "down", r"\.errors, line \d+, imports jaxarch\.state"),
    "up in a function": (
        "spec.py",
        "def f():\n    from jaxarch import catalog\n",
        "down",
        r"\.spec, line \d+, imports jaxarch\.catalog",
    ),
    "up for type checkers": (
        "nn/linear.py",
        "if TYPE_CHECKING:\n    from jaxarch.convert.layout import Row\n",
        "down",
        r"\.nn\.linear, line \d+, imports jaxarch\.convert\.layout",
    ),
    "up to the front door": (
        "state.py",
        "from jaxarch import create_model\n",
        "down",
        r"\.state, line \d+, imports jaxarch\.__init__",
    ),
    "up by a string": (
        "files.py",
        "x = importlib.import_module('jaxarch.train')\n",
        "down",
        r"\.files, line \d+, imports jaxarch\.train",
    ),
    "circle": (
        "state.py",
        "from jaxarch.observe import observe\n",
        "no circle",
        "^observe -> state -> observe$",
    ),
    "torch": (
        "state.py",
        "try:\n    import torch.nn\nexcept ImportError:\n    pass\n",
        "torch",
        r"\.state, line \d+, imports torch\.nn when it is imported",
    ),
    "torchref": (
        "arrays.py",
        "def f():\n    import torchref.nn\n",
        "torch",
        r"\.arrays, line \d+, imports torchref: use jaxarch\.reference",
    ),
    "torchref by a string": (
        "arrays.py",
        "def f(name):\n    importlib.import_module(f'torchref.{name}')\n",
        "torch",
        r"\.arrays, line \d+, imports torchref: use jaxarch\.reference",
    ),
    "length": ("errors.py", "\n" * 400, "length", r"\.errors has \d+ lines"),
    "length of a model": ("models/planted.py", "\n" * 251, "length", r"\.models\.planted has \d+ lines"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    file, text, rule, message = FAULTS[fault]
    copy = tmp_path / "jaxarch"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / file).open("a") as stream:
        stream.write(text)
    (problem,) = set(RULES[rule](copy)) - set(RULES[rule](PACKAGE))
    assert re.search(message, problem), problem
