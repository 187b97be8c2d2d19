"""`jaxarch bench`: training steps timed against torch."""

import argparse
import dataclasses
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxarch import bench
from jaxarch.errors import require_torch
from jaxarch.files import check_replaceable, write_text

JSON_MARK = b'"seconds":'


def run(args: argparse.Namespace) -> int:
    """Print a table for each contest, and write all timings as JSON if asked.

    Raises:
        UsageError: unknown names, no torch, fewer than one round, or --json names another file.
        JaxarchError: the second losses differ.
    """
    require_torch("bench")
    if args.json not in (None, "-"):
        check_replaceable(args.json, JSON_MARK)
    console, timings = Console(stderr=args.json == "-"), []
    for name in args.names:
        for contest in bench.contests(name, compiled=not args.no_compile):
            timings.append(timing := bench.measure(contest, args.repeat))
            console.print(_table(timing))
    text = json.dumps([dataclasses.asdict(t) for t in timings], indent=2)
    if args.json == "-":
        print(text)
    elif args.json:
        write_text(Path(args.json), text)
    return 0


def _table(timing: bench.Timing) -> Table:
    rates = timing.tokens_per_second
    table = Table(timing.name, "median ms", "ours / theirs", *(["tokens / s"] if rates else []))
    for label, seconds in timing.seconds.items():
        ratio = f"{timing.ratio[label]:.2f}" if label in timing.ratio else ""
        rate = [f"{rates[label]:,.0f}"] if rates else []
        table.add_row(label, f"{1e3 * seconds:.1f}", ratio, *rate)
    return table
