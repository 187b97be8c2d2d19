"""The results of parity cases as JSON, as HTML and as lines of a terminal."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxarch import html
from jaxarch.files import write_text
from jaxarch.parity.checks import CaseResult
from jaxarch.parity.compare import BOUND


def to_json(results: Iterable[CaseResult]) -> list[dict[str, Any]]:
    """The results as plain data; errors are numbers, and an infinite one is the largest float."""
    rows = []
    for r in results:
        row = {**dataclasses.asdict(r), "minimum_bound": r.minimum_bound, "bound": BOUND}
        row["structural_zeros"] = list(r.structural_zeros)
        # JSON has no infinity.
        rows.append({k: min(v, sys.float_info.max) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def write_json(results: Iterable[CaseResult], path: str | Path) -> None:
    """Write the results as JSON; the file appears whole or not at all."""
    write_text(Path(path), json.dumps(to_json(results), indent=2) + "\n")


def write_html(results: Sequence[CaseResult], path: str | Path) -> None:
    """Write the results as one self-contained page; the file appears whole or not at all."""
    write_text(Path(path), html.render("parity.html", results=results, bound=BOUND))


def print_result(console: Console, result: CaseResult, number: int, count: int) -> None:
    """A line for a result, the number-th of count, and one more for what failed."""
    verdict = "[green]ok[/]    " if result.ok else "[red]failed[/]"
    console.print(f"[{number}/{count}] {verdict} {_line(result)}", highlight=False)
    if not result.ok:
        console.print(f"        {result.detail}", highlight=False, markup=False)


def print_summary(console: Console, results: Sequence[CaseResult]) -> None:
    """How many results are ok, the bound, and the largest error of all."""
    worst = max((r.minimum_bound for r in results), default=0.0)
    good = sum(r.ok for r in results)
    console.print(f"{good} of {len(results)} ok; the bound is {BOUND:.0e}, the largest error {worst:.1e}")


def _line(r: CaseResult) -> str:
    exact = "exact" if r.weights == r.roundtrip == 0 else f"{r.weights:.0f}, {r.roundtrip:.0f} differ"
    errors = f"outputs {r.outputs:.1e}  gradients {r.gradients:.1e}  training {r.training:.1e}"
    return f"{r.name} {r.variant}: weights {exact}  {errors}  {r.seconds:.1f} s"
