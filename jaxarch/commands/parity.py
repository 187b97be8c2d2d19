"""`jaxarch parity`: prove that the models of both packages are the same."""

import argparse
import json

from rich.console import Console

from jaxarch import catalog
from jaxarch.errors import UsageError, require
from jaxarch.files import HTML_MARK, check_replaceable
from jaxarch.runtime import configure_jax

JSON_MARK = b'"roundtrip":'


def run(args: argparse.Namespace) -> int:
    """Run the cases and print them; 1 if one fails.

    Raises:
        UsageError: unknown names, or none; torch or, for --html, the extra viz is missing; a report's
            name is that of another file.
    """
    if args.all + bool(args.family) + bool(args.names) != 1:
        raise UsageError("parity takes model names, --family F or --all: one of the three")
    names = args.names or catalog.list_models(args.family)
    if args.html:
        require("jinja2", "viz", "parity --html")
        check_replaceable(args.html, HTML_MARK)
    if args.json not in (None, "-"):
        check_replaceable(args.json, JSON_MARK)
    configure_jax(cpu=True, x64=True)
    from jaxarch import parity

    cases = parity.cases(names, args.variant)
    if not cases:
        raise UsageError(f"no architecture in family {args.family!r} yet")
    results = parity.run_cases(cases, console=Console(stderr=args.json == "-"))
    if args.json == "-":
        print(json.dumps(parity.to_json(results), indent=2))
    elif args.json:
        parity.write_json(results, args.json)
    if args.html:
        parity.write_html(results, args.html)
    return 0 if all(r.ok for r in results) else 1
