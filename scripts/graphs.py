"""Draws the curves of docs/graphs.md from finished runs: python scripts/graphs.py RUNS [docs/graphs]"""

import json
import sys
from pathlib import Path

from jaxarch import html
from jaxarch.files import write_text

CURVES = {  # figure: its metric, its runs, the metric's label
    "nodes": (
        "eval_accuracy",
        ("gnn", "gat", "gnn_digits", "gat_digits", "social_gnn"),
        "accuracy without labels",
    ),
    "molecules": ("eval_rmse", ("gnn_molecules",), "root mean square error of logP"),
    "generator": (
        "eval_pairs",
        ("graph_generator", "graph_generator_additive"),
        "accuracy of edges in held-out graphs",
    ),
}


def rows(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(r["step"], r[key]) for r in lines if key in r]
    return [s for s, _ in points], [v for _, v in points]


def main(runs: Path, out: Path) -> None:
    """Draw the figures whose runs all exist, and name the missing runs of the others."""
    for figure, (key, names, label) in CURVES.items():
        if missing := [name for name in names if not (runs / name / "metrics.jsonl").is_file()]:
            print(f"{figure}.svg is not drawn: {runs} has no run {', '.join(missing)}", file=sys.stderr)
            continue
        lines = {name: rows(runs / name, key) for name in names}
        write_text(out / f"{figure}.svg", html.curves(lines, xlabel="step", ylabel=label))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/graphs"))
