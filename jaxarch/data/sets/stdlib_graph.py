"""Python's standard library as a graph: who imports, defines and inherits what."""

import ast
import re
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.graph_batches import check_width, labelled, one_graph
from jaxarch.errors import DataError

PACKAGES: tuple[str, ...] = ("asyncio", "concurrent", "ctypes", "email", "http", "importlib", "logging")
PACKAGES += ("multiprocessing", "tkinter", "unittest", "urllib", "xml")
RELATIONS = ("imports", "defines", "inherits")  # and the reverse of each, after them
WIDTH = 128


def load(
    *,
    arguments: Mapping[str, Any],
    per_class: int = 5,
    split: int = 0,
    blind: bool = False,
) -> ArraySource:
    """Modules and classes of twelve packages; the label is the package, the features hashed words.

    Relations are imports (module to module), defines (module to class) and inherits (class to class), each
    both ways. A node's words are the names of what it defines and the words of its docstring.

    Args:
        per_class: nodes of each package with a label in training.
        split: which ones, drawn from this number.
        blind: all relations count as the first, for comparison.

    Raises:
        DataError: the source is not installed, or the model is of another width.
    """
    check_width(arguments, in_channels=WIDTH, num_relations=2 * len(RELATIONS), out_channels=len(PACKAGES))
    folder = Path(sysconfig.get_path("stdlib"))
    if missing := [p for p in PACKAGES if not (folder / p / "__init__.py").is_file()]:
        raise DataError(f"the standard library at {folder} lacks {missing[0]}: install Python's full package")
    words, links, label = read_graph(folder)
    index = {name: i for i, name in enumerate(words)}
    x = np.zeros((len(words), WIDTH), np.float32)
    for row, of_node in zip(x, words.values(), strict=True):
        for word in of_node:
            row[zlib.crc32(word.encode()) % WIDTH] += 1
    x = np.log1p(x)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    ends = np.array([(index[a], index[b]) for a, _, b in links], np.int32).T
    kind = np.array([RELATIONS.index(r) for _, r, _ in links], np.int32)
    inputs = {
        "x": x,
        "edge_index": np.concatenate([ends, ends[::-1]], 1),
        "edge_type": np.concatenate([kind, kind + len(RELATIONS)]) * (0 if blind else 1),
    }
    target = np.array([label[name] for name in words], np.int32)
    return one_graph(inputs, target, labelled(target, per_class, split), len(PACKAGES))


def read_graph(folder: Path) -> tuple[dict[str, list[str]], list[tuple[str, str, str]], dict[str, int]]:
    """Words of each node, links (source, relation, target), and each node's package."""
    trees = dict(_modules(folder))
    words, label, raw = {}, {}, []
    for module, tree in trees.items():
        package = PACKAGES.index(module.partition(".")[0])
        words[module], label[module] = _words(tree), package
        inside = module if folder.joinpath(*module.split("."), "__init__.py").is_file() else _parent(module)
        scope: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                raw += [(module, "imports", a.name) for a in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = inside.split(".")[: len(inside.split(".")) + 1 - node.level] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                raw += [(module, "imports", o) for o in {origin, *(f"{origin}.{a.name}" for a in node.names)}]
                scope |= {a.asname or a.name: f"{origin}.{a.name}" for a in node.names}
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        scope |= {node.name: f"{module}.{node.name}" for node in classes}
        for node in classes:
            name = f"{module}.{node.name}"
            words[name], label[name] = _words(node), package
            raw.append((module, "defines", name))
            for parent in node.bases:
                text = ast.unparse(parent)
                raw.append((name, "inherits", scope.get(text, text)))
    links = sorted({(a, r, b) for a, r, b in raw if b in words and a != b})
    return words, links, label


def _modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    """Names and trees of all modules but those for testing."""
    for package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if "test" in parts or "tests" in parts:
                continue
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text(encoding="utf-8", errors="replace"))


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _words(tree: ast.Module | ast.ClassDef) -> list[str]:
    """Lower-case words of the names that are defined at the top, and of the docstring."""
    names = [
        n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    return re.findall(r"[a-z]{3,}", " ".join([*names, ast.get_docstring(tree) or ""]).lower())
