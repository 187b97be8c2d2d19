"""`jaxarch list`: the architectures of the catalog."""

import argparse
import json

from rich.console import Console
from rich.table import Table

from jaxarch import catalog


def run(args: argparse.Namespace) -> int:
    """Print a table, or JSON."""
    pages = [catalog.page(name) for name in catalog.list_models(args.family)]
    if args.json:
        keys = ("name", "cls", "family", "paper", "variants")
        rows = [{("class" if k == "cls" else k): getattr(p, k) for k in keys} for p in pages]
        print(json.dumps([{**r, "variants": list(r["variants"])} for r in rows], indent=2))
        return 0
    table = Table("name", "class", "family", "variants", "paper")
    for p in pages:
        table.add_row(p.name, p.cls, p.family, ", ".join(p.variants), p.paper)
    Console().print(table)
    return 0
