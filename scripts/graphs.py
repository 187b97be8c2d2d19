"""Draws the curves of docs/graphs.md from finished runs: python scripts/graphs.py RUNS [docs/graphs]"""

import json
import sys
from pathlib import Path

from jaxarch import html

CURVES = {  # picture: its metric, its runs, what the metric is
    "nodes": (
        "eval_accuracy",
        ("gnn", "gat", "gnn_digits", "gat_digits", "social_gnn"),
        "accuracy without labels",
    ),
    "molecules": ("eval_rmse", ("gnn_molecules",), "root mean square error of logP"),
    "generator": (
        "eval_pairs",
        ("graph_generator", "graph_generator_additive"),
        "right pairs of held-out graphs",
    ),
}


def rows(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(r["step"], r[key]) for r in lines if key in r]
    return [s for s, _ in found], [v for _, v in found]


def main(runs: Path, out: Path) -> None:
    """Draw what belongs to the runs that are there, and say which are not."""
    out.mkdir(parents=True, exist_ok=True)
    for picture, (key, names, label) in CURVES.items():
        lines = {name: rows(runs / name, key) for name in names if (runs / name / "metrics.jsonl").is_file()}
        if lines:
            (out / f"{picture}.svg").write_text(html.curves(lines, xlabel="step", ylabel=label))
        if missing := [name for name in names if name not in lines]:
            print(f"{runs} has no run {', '.join(missing)}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/graphs"))
