"""`jaxarch convert`: weights and whole runs, from any kind of place to any other, and what became of everything."""

import argparse
import ast
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxarch.convert.fetch import folder_of
from jaxarch.convert.hub import PREFIX
from jaxarch.convert.pipeline import Changes
from jaxarch.convert.report import Report
from jaxarch.errors import UsageError
from jaxarch.files import check_replaceable, write_text
from jaxarch.handover import source as sources
from jaxarch.handover import target as targets

JSON_MARK = b'"source":'
_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def run(args: argparse.Namespace) -> int:
    """Print what was written and what became of the rest; with --json FILE, all of it."""
    if args.json not in (None, "-"):
        check_replaceable(args.json, JSON_MARK)
    report = conversion(
        args.source,
        args.target,
        model=args.model,
        variant=args.variant,
        settings=parse_settings(args.set),
        average=args.average,
        part=args.part,
        changes=Changes(
            strip_prefix=args.strip_prefix or "",
            rename=args.rename,
            rename_back=args.rename_back,
            allow_missing=args.allow_missing,
            allow_unexpected=args.allow_unexpected,
            dtype=args.dtype,
        ),
        shard_size=args.shard_size,
        force=args.force,
        verify=args.verify,
        dry_run=args.dry_run,
    )
    if args.json:
        text = json.dumps(report.as_json(), indent=1)
        if args.json == "-":
            print(text)
        else:
            write_text(Path(args.json), text + "\n")
    if args.json != "-":
        print("\n".join(report.lines()))
    return 0


def convert(
    source: str, target: str, *, model: str | None = None, variant: str | None = None, average: bool = False
) -> str:
    """`conversion` without options; the result is its first line."""
    return conversion(source, target, model=model, variant=variant, average=average).summary()


def conversion(
    source: str,
    target: str,
    *,
    model: str | None = None,
    variant: str | None = None,
    settings: Mapping[str, Any] | None = None,
    average: bool = False,
    part: str | None = None,
    changes: Changes | None = None,
    shard_size: int | str | None = None,
    force: bool = False,
    verify: bool = False,
    dry_run: bool = False,
) -> Report:
    """Convert weights between files, checkpoints (orbax) and Hugging Face folders; strictly, tensor by tensor.

    Args:
        source: a weight file or the index of its shards, the folder of a run or of a checkpoint, a folder with torch's
            model.safetensors and optimizer.pt, `hf:` and a Hugging Face folder, or `hf:ORG/NAME@REVISION`.
        target: a weight file, or a folder, with `hf:` before it a Hugging Face folder. A run goes into a folder with
            its optimizer, as torch's two files, and back into one that training resumes. A Hugging Face folder holds
            no adapters: they are merged.
        model, variant, settings: the architecture, which may be the path of a user's page; a folder that names it
            needs none of them. `settings` are constructor arguments that differ from the variant's.
        average: write the exponential moving average of a run's weights, with which it evaluates and samples,
            into a file.
        part: of a file with several sets of weights, the one to take, such as "ema".
        changes: names, rules and dtypes.
        shard_size: the most bytes of one file of safetensors, such as "5GB".
        force: overwrite an existing target.
        verify: read the target back and compare it with the source.
        dry_run: say what would be written, and write nothing.

    Returns:
        What became of everything.

    Raises:
        UsageError: the architecture is not known, or contradicts what the folder says; `average` of a source
            that has none, or into a folder; a target of an unknown kind.
        ConversionError: the weights do not fit it, the source is missing or damaged, the target exists.
        CheckpointError: the folder is no checkpoint, or is damaged.

    Example:
        >>> report = conversion("model.safetensors", "weights/", model="mlp", variant="digits")
        >>> report.tensors["network.0.weight"]["dtype"], report.dropped
        ('F32', {})
    """
    changes = changes or Changes()
    kind = targets.kind_of(target)
    if average and kind != sources.FILE:
        suffixes = ", ".join(targets.WRITTEN)
        raise UsageError(f"--average writes a weight file: let {target} end in one of {suffixes}")
    if kind == sources.HUB and changes.rename_back is not None:
        raise UsageError("the names in a Hugging Face folder are Hugging Face's: leave out --rename-back")
    place = folder_of(source) if source.startswith(PREFIX) else Path(source)
    report = Report(source, target)
    request = sources.Request(
        place,
        sources.kind_of(source),
        model,
        variant,
        settings or {},
        changes,
        average=average,
        part=part,
        merge=kind == sources.HUB,
    )
    path = Path(target.removeprefix(PREFIX))
    with request.opened:
        content = sources.read_source(request, report)
        report.model = f"{content.model} {content.variant}"
        decided = [dataclasses.astuple(changes), average, part, content.overrides]
        how = targets.Writing(parse_size(shard_size), decided, verify)
        if dry_run:
            targets.planned(target, kind, content, report, how)
            return report
        targets.check_target(path, place, force=force)
        targets.write(target, kind, content, report, how)
    return report


def parse_settings(items: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments of `--set KEY=VALUE`, where KEY may have `model.` before it.

    Raises:
        UsageError: an item is not of that form.
    """
    settings: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {item!r}: write KEY=VALUE, for example n_embd=1024")
        words = {"true": True, "false": False, "none": None, "null": None}
        try:
            value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        settings[key.removeprefix("model.")] = value
    return settings


def parse_size(text: int | str | None) -> int | None:
    """A number of bytes of a text such as "5GB" or "200MiB".

    Raises:
        UsageError: it is none, or not above 0.
    """
    if text is None or isinstance(text, int):
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if size <= 0:
        raise UsageError(f"{text!r} is not a size: write for example 5GB or 200MiB")
    return size
