"""Draws docs/attention.svg and prints the table of docs/attention.md: python scripts/attention.py BENCH.json

BENCH.json is what `jaxarch bench attention --json BENCH.json` writes.
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def main(file: str, out: str = "docs/attention.svg") -> None:
    """Draw the figure and print a row per attention: milliseconds by length, and the exponent that fits best."""
    timings = json.loads(Path(file).read_text())
    lengths = [int(t["name"].split()[-1]) for t in timings]
    seconds = {name: [t["seconds"][name] for t in timings] for name in timings[0]["seconds"]}
    print("| attention |", " | ".join(f"{n:,}" for n in lengths), "| exponent |")
    print("|---|" + "---|" * (len(lengths) + 1))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, times in seconds.items():
        exponent = np.polyfit(np.log(lengths), np.log(times), 1)[0]
        print(f"| {name} |", " | ".join(f"{1e3 * s:.1f}" for s in times), f"| {exponent:.2f} |")
        style = "-" if name in ("full", "chunked") else "--"
        axes.loglog(lengths, [1e3 * s for s in times], style, marker="o", markersize=3, label=name)
    axes.set(xlabel="positions", ylabel="ms, one forward pass", xticks=lengths)
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
