"""Rules between the names and layouts of two state_dicts: ordered, total, invertible, and proven on actual names.

A rule leads from torch's names to JAX's; `Rules.inverse` leads back. Rules work on names and shapes alone, on
numpy's arrays, on JAX's inside a trace, and on tensors that are not loaded, of which parts are read.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxarch.convert.reshaping import Shape
from jaxarch.convert.steps import Alias, Arrays, Shapes, Step, Sum
from jaxarch.convert.templates import Template
from jaxarch.errors import ConversionError, UsageError, listed
from jaxarch.files import first_line

# A proof moves at most this many numbers of a tensor; a larger one is proven on a smaller shape.
PROOF_SIZE = 1 << 20


@dataclass(frozen=True)
class Constant:
    """An array that a rule's file describes: a number everywhere, `arange` or `tril`."""

    value: float | int | bool | str
    shape: Shape
    dtype: str = "float32"

    def array(self) -> np.ndarray:
        """The array."""
        if self.value == "arange":
            array = np.broadcast_to(np.arange(self.shape[-1]), self.shape)
        elif self.value == "tril":
            array = np.broadcast_to(np.tril(np.ones(self.shape[-2:])), self.shape)
        else:
            array = np.full(self.shape, self.value)
        return array.astype(np.dtype(self.dtype))


@dataclass(frozen=True)
class Rule:
    """One way from source names to target names, and the steps between their arrays.

    Attributes:
        steps: applied in order.
        constant: what the targets are where there is no source, and what the sources must be where there is no target.
        beside: for a constant whose names have variables, a name of the same side that has them too.
    """

    sources: tuple[Template, ...]
    targets: tuple[Template, ...]
    steps: tuple[Step, ...] = ()
    constant: Constant | None = None
    beside: Template | None = None

    def inverse(self) -> "Rule":
        """The rule from the targets to the sources."""
        steps = tuple(s.inverse() for s in reversed(self.steps))
        return replace(self, sources=self.targets, targets=self.sources, steps=steps)

    @property
    def lossless(self) -> bool:
        """Whether the way back restores every bit."""
        return not any(isinstance(s, Sum) for s in self.steps)

    def shapes(self, shapes: Shapes) -> Shapes:
        """The shapes of the targets."""
        for step in self.steps:
            shapes = step.shapes(shapes)
        return shapes

    def apply(self, arrays: Arrays) -> Arrays:
        """The targets' arrays."""
        for step in self.steps:
            arrays = step.apply(arrays)
        return arrays

    def text(self) -> str:
        """The names of both sides, for messages."""
        return " -> ".join(
            ", ".join(t.text for t in side) or "nothing" for side in (self.sources, self.targets)
        )


class Binding(NamedTuple):
    """A rule applied to actual names: the source names with their shapes, and the target names with theirs."""

    rule: Rule
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    source_shapes: Shapes
    target_shapes: Shapes

    def apply(self, arrays: Arrays) -> Arrays:
        """The targets' arrays, of the sources'.

        Raises:
            ConversionError: a source is not the constant that the rule declares, or aliases differ.
        """
        try:
            if self.rule.constant is None:
                return self.rule.apply(arrays)
            constant = self.rule.constant.array()
            for array in arrays:
                actual = np.asarray(array.read() if hasattr(array, "read") else array)
                if actual.dtype != constant.dtype or not np.array_equal(actual, constant, equal_nan=True):
                    raise ConversionError(f"it is not the constant {self.rule.constant}")
            return () if self.sources else (constant,) * len(self.targets)
        except ConversionError as e:
            raise ConversionError(f"{(self.sources or self.targets)[0]}: {e}") from None


@dataclass(frozen=True)
class Rules:
    """Ordered rules; the first that matches a name has it.

    Attributes:
        keep: whether names that no rule matches stay as they are; else they are an error.
    """

    rules: tuple[Rule, ...]
    keep: bool = False

    def inverse(self) -> "Rules":
        """The way back."""
        return Rules(tuple(r.inverse() for r in self.rules), self.keep)

    def number(self, name: str) -> int:
        """The number of the rule that takes a name of the source side, counted from 0; their count if none does."""
        takes = (any(t.match(name) is not None for t in r.sources) for r in self.rules)
        return next((i for i, taken in enumerate(takes) if taken), len(self.rules))

    def bind(self, shapes: Mapping[str, Shape]) -> list[Binding]:
        """Which rule has which of the names.

        Args:
            shapes: every name of the source side, with its shape.

        Raises:
            ConversionError: a name matches no rule, a rule lacks a part or does not fit a shape, or two rules give one
                name; all of them are listed.
        """
        bindings: list[Binding] = []
        problems: list[str] = []
        claimed: set[str] = set()
        for rule in self.rules:
            if not rule.sources:
                continue
            groups, missing = _groups(rule, [k for k in shapes if k not in claimed])
            problems += missing
            for values, names in groups:
                claimed.update(names)
                try:
                    bindings.append(_bound(rule, values, names, shapes))
                except (ConversionError, UsageError) as e:
                    problems.append(f"{names[0]}: {first_line(e)}")
        rest = [k for k in shapes if k not in claimed]
        if self.keep:
            same = (Template("{rest*}"),)
            bindings += [Binding(Rule(same, same), (k,), (k,), (shapes[k],), (shapes[k],)) for k in rest]
        elif rest and not problems:
            problems += [f"{k} matches no rule" for k in rest]
        bindings += _constants(self.rules, bindings)
        targets: dict[str, str] = {}
        for binding in bindings:
            for target in binding.targets:
                if target in targets:
                    problems.append(
                        f"{target} is given by two rules: {targets[target]} and {binding.rule.text()}"
                    )
                targets[target] = binding.rule.text()
        if problems:
            raise ConversionError(f"the rules do not fit: {listed(problems)}")
        return bindings

    def apply(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors under the other side's names and in its layout: numpy's, JAX's (traced too) or not loaded.

        Raises:
            ConversionError: as `bind`.
        """
        result: dict[str, Any] = {}
        for b in self.bind({k: tuple(v.shape) for k, v in tensors.items()}):
            outputs = b.apply(tuple(tensors[k] for k in b.sources))
            result.update(zip(b.targets, outputs, strict=False))
        return result

    def prove(self, shapes: Mapping[str, Shape]) -> list[Binding]:
        """`bind`, and the proof that the way back gives every name, shape and bit.

        Each rule is run there and back on numbered elements, once for each combination of shapes.

        Raises:
            ConversionError: as `bind`; or the way back gives something else.
        """
        bindings, back = self.bind(shapes), self.inverse()
        targets = {k: s for b in bindings for k, s in zip(b.targets, b.target_shapes, strict=True)}
        returned = {k: s for b in back.bind(targets) for k, s in zip(b.targets, b.target_shapes, strict=True)}
        problems = [f"{k} does not come back" for k in shapes if k not in returned]
        problems += [f"{k} comes back though it was not there" for k in returned if k not in shapes]
        problems += [
            f"{k} comes back as {returned[k]}, was {s}" for k, s in shapes.items() if returned.get(k, s) != s
        ]
        seen = set()
        for b in bindings:
            key = (id(b.rule), b.source_shapes)
            if b.rule.constant is None and b.rule.steps and key not in seen:
                seen.add(key)
                if not _restores(b.rule, b.source_shapes):
                    problems.append(f"the rule {b.rule.text()} does not restore {b.sources[0]}")
        if problems:
            raise ConversionError(f"the rules cannot be inverted: {listed(problems)}")
        return bindings


def _groups(
    rule: Rule, names: Sequence[str]
) -> tuple[list[tuple[dict[str, str], tuple[str, ...]]], list[str]]:
    """The names that a rule takes together, with the variables that both sides have; and what is missing."""
    common = rule.sources[0].variables
    if rule.targets:
        common &= rule.targets[0].variables
    found: dict[tuple[tuple[str, str], ...], dict[tuple[int, str], str]] = {}
    for position, template in enumerate(rule.sources):
        for name in names:
            values = template.match(name)
            if values is not None:
                key = tuple(sorted((k, v) for k, v in values.items() if k in common))
                index = next((v for k, v in values.items() if k not in common), "")
                found.setdefault(key, {}).setdefault((position, index), name)
    groups, problems = [], []
    for key, members in found.items():
        if len(rule.sources) > 1 and len(members) != len(rule.sources):
            lacking = [t.text for i, t in enumerate(rule.sources) if (i, "") not in members]
            problems.append(f"{next(iter(members.values()))} lacks {lacking[0]} beside it")
            continue
        indices = [i for _, i in members]
        if any(indices) and sorted(indices) != sorted(map(str, range(len(indices)))):
            problems.append(
                f"{next(iter(members.values()))}: the indices to stack are not 0 to {len(indices) - 1}"
            )
            continue
        order = sorted(members, key=lambda m: (m[0], int(m[1] or 0)))
        groups.append((dict(key), tuple(members[m] for m in order)))
    return groups, problems


def _bound(
    rule: Rule, values: Mapping[str, str], names: tuple[str, ...], shapes: Mapping[str, Shape]
) -> Binding:
    source_shapes = tuple(tuple(shapes[k]) for k in names)
    if rule.constant is not None:
        if source_shapes != (rule.constant.shape,):
            raise ConversionError(f"has shape {source_shapes[0]}, the constant {rule.constant.shape}")
        return Binding(rule, names, (), source_shapes, ())
    target_shapes = rule.shapes(source_shapes)
    extra = rule.targets[0].variables - values.keys()
    if extra:
        rows = [{**values, next(iter(extra)): str(i)} for i in range(len(target_shapes))]
        targets = tuple(rule.targets[0].fill(r) for r in rows)
    else:
        targets = tuple(t.fill(values) for t in rule.targets)
    if len(targets) != len(target_shapes):
        raise ConversionError(f"the rule gives {len(target_shapes)} tensors for {len(targets)} names")
    return Binding(rule, names, targets, source_shapes, target_shapes)


def _constants(rules: Iterable[Rule], bindings: Iterable[Binding]) -> list[Binding]:
    """The constants that have no source, beside the targets that they stand beside."""
    given = [k for b in bindings for k in b.targets]
    made = []
    for rule in rules:
        if rule.sources or rule.constant is None:
            continue
        if rule.beside is None:
            rows: list[Mapping[str, str]] = [{}]
        else:
            rows = [v for k in given if (v := rule.beside.match(k)) is not None]
        for values in rows:
            name = rule.targets[0].fill(values)
            made.append(Binding(rule, (), (name,), (), (rule.constant.shape,)))
    return made


def _restores(rule: Rule, shapes: Shapes) -> bool:
    """Whether a rule there and back is the identity, on elements that are numbered; a large shape is halved first."""
    shapes = _smaller(rule, shapes)
    count = 0
    arrays = []
    for shape in shapes:
        size = math.prod(shape)
        start = 0 if any(isinstance(s, Alias) for s in rule.steps) else count
        arrays.append(np.arange(start, start + size, dtype=np.int32).reshape(shape))
        count += size
    if rule.lossless:
        there, back = rule, rule.inverse()
    else:  # a sum: proven from its result
        arrays, there, back = list(rule.apply(tuple(arrays))), rule.inverse(), rule
    returned = back.apply(there.apply(tuple(arrays)))
    return len(returned) == len(arrays) and all(map(np.array_equal, arrays, returned))


def _smaller(rule: Rule, shapes: Shapes) -> Shapes:
    """Shapes of fewer elements that the rule takes as well, where there are any."""
    axis = 0
    while shapes and sum(math.prod(s) for s in shapes) > PROOF_SIZE and axis < len(shapes[0]):
        halved = tuple((*s[:axis], s[axis] // 2, *s[axis + 1 :]) if axis < len(s) else s for s in shapes)
        try:
            fits = all(s[axis] > 1 and s[axis] % 2 == 0 for s in shapes)
            fits = fits and rule.inverse().shapes(rule.shapes(halved)) == halved
        except (ConversionError, IndexError):
            fits = False
        if fits:
            shapes = halved
        else:
            axis += 1
    return shapes
