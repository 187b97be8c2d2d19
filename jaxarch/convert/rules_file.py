"""The form of a file of rules, TOML, and the checks of it; docs/conversion.md describes it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxarch.convert.rules import Constant, Rule, Rules
from jaxarch.convert.steps import (
    Alias,
    Concat,
    Copy,
    Permute,
    Reshape,
    Split,
    Spread,
    Stack,
    Step,
    Sum,
    Unstack,
)
from jaxarch.convert.templates import Template
from jaxarch.errors import UsageError, unknown
from jaxarch.files import first_line

STEPS = ("permute", "reshape", "split", "concat", "stack", "unstack", "sum", "alias", "constant")
KEYS = ("torch", "jax", "sizes", "beside", "shape", "dtype", *STEPS)
REST = ("error", "keep")


def read_rules(path: str | Path, arguments: Mapping[str, Any] | None = None) -> Rules:
    """The rules of a TOML file; see docs/conversion.md for its form.

    Args:
        arguments: the architecture's, which `sizes` and `shape` may name.

    Raises:
        UsageError: the file is missing or not TOML, or a rule is malformed.
    """
    try:
        table = tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise UsageError(f"{path} is not a file of rules: {first_line(e)}") from None
    try:
        return parse_rules(table, arguments)
    except UsageError as e:
        raise UsageError(f"{path}: {e}") from None


def parse_rules(table: Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> Rules:
    """The rules of a table `{"rule": [...], "rest": "keep" or "error"}`.

    Raises:
        UsageError: an unknown key, or a rule that cannot be inverted.
    """
    for key in table:
        if key not in ("rule", "rest"):
            raise unknown("key of a rules file", key, ("rule", "rest"))
    if table.get("rest", "error") not in REST:
        raise unknown("value of rest", table["rest"], REST)
    rows = table.get("rule")
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) for r in rows):
        raise UsageError("a rules file holds tables [[rule]]")
    rules = []
    for number, row in enumerate(rows, 1):
        try:
            rules.append(_rule(row, arguments or {}))
        except (UsageError, TypeError, KeyError, ValueError) as e:
            raise UsageError(f"rule {number}: {first_line(e)}") from None
    return Rules(tuple(rules), table.get("rest") == "keep")


def _rule(row: Mapping[str, Any], arguments: Mapping[str, Any]) -> Rule:
    for key in row:
        if key not in KEYS:
            raise unknown("key", key, KEYS)
    sources, targets = (_templates(row.get(side, ()), side) for side in ("torch", "jax"))
    sizes = {k: _size(v, arguments) for k, v in row.get("sizes", {}).items()}
    constant = None
    if "constant" in row:
        shape = tuple(_size(n, arguments) for n in row.get("shape", ()))
        constant = Constant(row["constant"], shape, row.get("dtype", "float32"))
        constant.array()
    if bool(sources and targets) == (constant is not None):
        raise UsageError("a rule needs torch and jax, or constant and one of them")
    counts = len(sources), len(targets)
    steps = tuple(_step(k, v, sizes, counts, arguments) for k, v in row.items() if k in STEPS[:-1])
    beside = Template(row["beside"]) if "beside" in row else None
    rule = Rule(sources, targets, steps, constant, beside)
    _check_variables(rule)
    return rule


def _templates(value: Any, side: str) -> tuple[Template, ...]:
    names = [value] if isinstance(value, str) else list(value)
    templates = tuple(Template(n) for n in names)
    if len({t.variables for t in templates}) > 1:
        raise UsageError(f"the names of {side} must have the same variables")
    return templates


def _size(value: Any, arguments: Mapping[str, Any]) -> int:
    if isinstance(value, str):
        if value not in arguments:
            raise unknown("argument of the architecture", value, arguments)
        value = arguments[value]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{value!r} is not a size")
    return value


def _step(
    name: str, value: Any, sizes: Mapping[str, int], counts: tuple[int, int], arguments: Mapping[str, Any]
) -> Step:
    """The step of one key of a rule, whose sides have so many names."""
    count = max(counts)
    match name:
        case "permute":
            return Permute(tuple(value))
        case "reshape":
            return Reshape.parse(value, sizes)
        case "stack":
            return Stack(_axis(value))
        case "unstack":
            return Unstack(_axis(value))
        case "split" | "concat":
            table = value if isinstance(value, Mapping) else {"axis": value}
            lengths = tuple(_size(n, arguments) for n in table["sizes"]) if "sizes" in table else None
            if lengths is not None and len(lengths) != count:
                raise UsageError(f"{name} has {len(lengths)} sizes for {count} names")
            if counts[0 if name == "split" else 1] != 1:
                raise UsageError("split has one name of torch, concat one of jax")
            return (Split if name == "split" else Concat)(_axis(table["axis"]), count, lengths)
    if value is not True:
        raise UsageError(f"write {name} = true")
    step = Sum(count) if name == "sum" else Alias(count)
    return step.inverse() if counts[1] > 1 else step


def _axis(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{value!r} is not an axis, counted from 0")
    return value


def _check_variables(rule: Rule) -> None:
    """The variables of both sides are the same, but for one that a stack or an unstack runs through.

    Raises:
        UsageError: they are not.
    """
    if rule.constant is not None:
        template, *others = rule.sources or rule.targets
        if template.variables and (rule.beside is None or rule.beside.variables != template.variables):
            raise UsageError(
                f"{template.text!r} needs beside: a name of the same side with the same variables"
            )
        if others:
            raise UsageError("a constant has one name")
        return
    sides = rule.sources[0].variables, rule.targets[0].variables
    kinds = {type(s) for s in rule.steps}
    for extra, many, kind in (
        (sides[0] - sides[1], rule.sources, Stack),
        (sides[1] - sides[0], rule.targets, Unstack),
    ):
        if extra and (len(extra) > 1 or kind not in kinds or len(many) > 1):
            word = kind.__name__.lower()
            raise UsageError(
                f"{rule.text()}: {', '.join(sorted(extra))} is on one side: {word} joins a single one"
            )
    joined, parted = {Stack, Concat, Sum, Alias} & kinds, {Split, Unstack, Spread, Copy} & kinds
    if (len(rule.sources) > 1 and not joined) or (len(rule.targets) > 1 and not parted):
        raise UsageError(f"{rule.text()}: several names need split, concat, stack, unstack, sum or alias")
