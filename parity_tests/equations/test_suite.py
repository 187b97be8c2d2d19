"""The suite's own form: an equation names no architecture, and no function of a test file is longer than 40 lines."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 40


def architectures() -> set[str]:
    """The names of the catalog's architectures: those of their pages, and of their classes."""
    pages = list((ROOT / "configs").glob("*.toml"))
    return {p.stem for p in pages} | {tomllib.loads(p.read_text())["class"] for p in pages}


def named(text: str, names: set[str]) -> set[str]:
    """The names that a text has as whole words, in code, strings and prose alike."""
    return names & set(re.findall(r"\w+", text))


def long_functions(text: str) -> dict[str, int]:
    """Functions, nested ones too, whose bodies have more than 40 lines, and how many."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    lengths = {f.name: (f.end_lineno or 0) - f.body[0].lineno + 1 for f in functions}
    return {name: length for name, length in lengths.items() if length > LONGEST}


def test_no_equation_names_an_architecture():
    names = architectures()
    files = sorted(Path(__file__).parent.rglob("*.py"))
    assert len(names) > 50
    assert len(files) >= 5
    assert not {f.name: found for f in files if (found := named(f.read_text(), names))}


def test_no_function_of_a_test_file_is_too_long():
    files = sorted((ROOT / "parity_tests").rglob("*.py"))
    assert len(files) > 40
    assert not {f.name: found for f in files if (found := long_functions(f.read_text()))}


@pytest.mark.parametrize(
    "wrap", ["x = create_model('{}')", "from jaxarch.models import {}", '"""Of {} alone."""']
)
def test_a_planted_name_is_found(wrap):
    names = architectures()
    for name in names:
        assert name in named(wrap.format(name), names)
        assert not named(wrap.format(f"{name}s_"), names)


def test_a_planted_long_function_is_found():
    for lines, found in ((LONGEST, {}), (LONGEST + 1, {"test_planted": LONGEST + 1})):
        body = "".join(f"        x = {i}\n" for i in range(lines))
        assert long_functions(f"class Test:\n    def test_planted(self):\n{body}") == found
