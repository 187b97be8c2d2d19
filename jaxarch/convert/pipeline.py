"""The way of tensors from the names of a source to those of a model: prefix, rules, ties, selection, cast."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxarch import catalog
from jaxarch.convert import hub_names
from jaxarch.convert.casting import DTYPES, cast
from jaxarch.convert.hub_config import config_class
from jaxarch.convert.layout import Row
from jaxarch.convert.report import HEAD, Report
from jaxarch.convert.rules import Rules
from jaxarch.convert.rules_file import read_rules
from jaxarch.convert.state_dict import fitted
from jaxarch.convert.tensors import Tensor
from jaxarch.convert.ties import drop_tied
from jaxarch.errors import ConversionError, printable, unknown


@dataclass(frozen=True)
class Changes:
    """What a user asks to change on the way.

    Attributes:
        strip_prefix: a prefix of names in the source, such as `module.`.
        rename: a file of rules (see `rules_file`) from the source's names, its torch side, to the model's.
        rename_back: a file of rules from the target's names, its torch side, to the model's; applied backwards.
        allow_missing, allow_unexpected: globs of names.
        dtype: one of `casting.DTYPES`, for floats.
    """

    strip_prefix: str = ""
    rename: str | Path | None = None
    rename_back: str | Path | None = None
    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    dtype: str | None = None

    def rules(self, arguments: Mapping[str, Any]) -> Rules | None:
        """The rules from the source's names to the model's."""
        return None if self.rename is None else read_rules(self.rename, arguments)

    def rules_back(self, arguments: Mapping[str, Any]) -> Rules | None:
        """The rules from the model's names to the target's."""
        return None if self.rename_back is None else read_rules(self.rename_back, arguments).inverse()


class Matched(NamedTuple):
    """Tensors that a model takes.

    Attributes:
        tensors: under torch's names, in torch's layout.
        leaves: the same by path, in JAX's layout.
        rows: which tensor is which leaf.
        missing: the rows whose tensors may be missing and are.
    """

    tensors: dict[str, Tensor]
    leaves: dict[str, Tensor]
    rows: list[Row]
    missing: list[Row]


def match(
    tensors: Mapping[str, Tensor],
    rows: Sequence[Row],
    like: Mapping[str, Any],
    changes: Changes,
    report: Report,
    *,
    name: str,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> Matched:
    """The tensors of a source as those of a model; what became of each is noted in the report.

    Args:
        rows, like: of the model: `layout.layout` and its leaves by path.
        name, arguments: the architecture.
        metadata: of the source.

    Raises:
        ConversionError: they do not fit: names, shapes, kinds of dtypes, rules that cannot be inverted.
        UsageError: a file of rules, a glob or a dtype that makes no sense.
    """
    if changes.dtype is not None and changes.dtype not in DTYPES:
        raise unknown("dtype", changes.dtype, DTYPES)
    origin = {id(t): k for k, t in tensors.items()}
    tensors = strip_prefix(tensors, changes.strip_prefix)
    rules = changes.rules(arguments)
    if rules is not None:
        tensors = renamed(tensors, rules, report)
    rows = _raw_rows(rows, tensors)
    needed = {r.torch for r in rows}
    tensors = _named(tensors, needed, name, metadata, report)
    report.renamed.update(
        {
            k: [origin[id(t)]]
            for k, t in tensors.items()
            if origin.get(id(t), k) != k and k not in report.renamed
        }
    )
    for glob in changes.allow_unexpected:
        for key in [k for k in tensors if k not in needed and _matches(k, [glob])]:
            report.dropped[key] = f"--allow-unexpected {glob}"
            tensors = {k: v for k, v in tensors.items() if k != key}
    missing = [r for r in rows if r.torch not in tensors and _matches(r.torch, changes.allow_missing)]
    report.missing.update(dict.fromkeys((r.torch for r in missing), "not written"))
    there = [r for r in rows if r not in missing]
    fitted(there, tensors, like)
    cast_tensors = _cast({r.torch: tensors[r.torch] for r in there}, changes.dtype, report)
    return Matched(cast_tensors, fitted(there, cast_tensors, like), rows, missing)


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors without a prefix of their names; those that lack it stay.

    Raises:
        ConversionError: none has it, or two tensors would have one name.
    """
    if not prefix:
        return dict(tensors)
    if tensors and not any(k.startswith(prefix) for k in tensors):
        first = printable(next(iter(tensors)))
        raise ConversionError(f"no tensor begins with {prefix!r}; the first is {first}")
    stripped = {k.removeprefix(prefix): v for k, v in tensors.items()}
    if len(stripped) != len(tensors):
        twice = next(k for k in tensors if k.startswith(prefix) and k.removeprefix(prefix) in tensors)
        raise ConversionError(f"without {prefix!r} two tensors are {printable(twice.removeprefix(prefix))}")
    return stripped


def renamed(tensors: Mapping[str, Tensor], rules: Rules, report: Report) -> dict[str, Tensor]:
    """The tensors by rules, which are proven on their names and shapes first.

    Raises:
        ConversionError: the rules do not fit the names, or cannot be inverted.
    """
    result: dict[str, Tensor] = {}
    for binding in rules.prove({k: t.shape for k, t in tensors.items()}):
        sources = tuple(tensors[k] for k in binding.sources)
        if len({t.info.dtype for t in sources}) > 1:
            raise ConversionError(
                f"{', '.join(binding.sources[:3])} have different dtypes and become one tensor"
            )
        outputs = binding.apply(sources)
        for target, value in zip(binding.targets, outputs, strict=False):
            result[target] = value if isinstance(value, Tensor) else Tensor.of(value)
        if not binding.rule.lossless:
            report.lossy.extend(binding.sources)
        if binding.sources and binding.sources != binding.targets:
            report.renamed.update({target: list(binding.sources) for target in binding.targets})
        if not binding.targets:
            report.dropped[binding.sources[0]] = "a constant of the rules"
    return result


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, g) for g in globs)


def _raw_rows(rows: Sequence[Row], tensors: Mapping[str, Tensor]) -> list[Row]:
    """The rows; a leaf that rules name by its own path, as `fc.kernel`, comes in JAX's layout already."""
    return [
        Row(r.path, r.path, None, r.trainable) if r.path in tensors and r.torch not in tensors else r
        for r in rows
    ]


def _named(
    tensors: Mapping[str, Tensor], needed: set[str], name: str, metadata: Mapping[str, str], report: Report
) -> dict[str, Tensor]:
    """The tensors without those that repeat others, and under Hugging Face's present names where the model has them."""
    if catalog.page(name).names == "huggingface":
        cls = config_class(name)
        base = getattr(cls, "base_model_prefix", cls.model_type)
        found = hub_names.fit(
            tensors, needed, kind=cls.model_type, base=base, metadata=metadata, where=report.source
        )
        report.tied.update(found.tied)
        report.dropped.update(dict.fromkeys(found.omitted, HEAD))
        report.dropped.update(dict.fromkeys(found.unused, "a buffer that holds no weights"))
        return found.tensors
    shared = {k: v for k, v in metadata.items() if k in needed and k not in tensors and v in tensors}
    tensors = {**tensors, **{k: tensors[v] for k, v in shared.items()}}
    kept, tied = drop_tied(tensors, needed)
    report.tied.update({**shared, **tied})
    counters = [k for k in kept if k not in needed and _is_counter(k, needed)]
    report.dropped.update(dict.fromkeys(counters, "a count of batches, without which the model computes"))
    return {k: v for k, v in kept.items() if k not in counters}


def _is_counter(key: str, needed: set[str]) -> bool:
    owner, _, leaf = key.rpartition(".")
    return leaf == "num_batches_tracked" and f"{owner}.running_mean" in needed


def _cast(tensors: Mapping[str, Tensor], dtype: str | None, report: Report) -> dict[str, Tensor]:
    if dtype is None:
        return dict(tensors)
    result = {k: cast(k, t, DTYPES[dtype]) for k, t in tensors.items()}
    report.cast.update(
        {k: (tensors[k].info.dtype, t.info.dtype) for k, t in result.items() if t is not tensors[k]}
    )
    return result
