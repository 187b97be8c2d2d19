"""`jaxarch push`: a model as a Hugging Face folder with a model card, on the disk or uploaded to the Hub."""

import argparse
import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxarch import catalog
from jaxarch.commands.convert import conversion, parse_size
from jaxarch.convert.fetch import REPOSITORY, Remote, readable_errors
from jaxarch.convert.hub import PREFIX
from jaxarch.convert.report import Report
from jaxarch.errors import UsageError, require
from jaxarch.files import first_line, write_text

CARD = "README.md"
# Begins our part of a model card.
MARK = "<!-- jaxarch: parity -->"


def run(args: argparse.Namespace) -> int:
    """Write the folder, upload it, and print what was written and where.

    Raises:
        UsageError: neither a repository nor a folder is given, or the figures are not those of the model.
        ConversionError: the folder could not be written or uploaded.
    """
    if args.repo is None and args.folder is None:
        raise UsageError("push needs ORG/NAME to upload to, or --folder DIR to write")
    if args.repo is not None and not REPOSITORY.fullmatch(args.repo):
        raise UsageError(f"{args.repo!r} is not the name of a model on the Hub: write ORG/NAME")
    if args.repo is not None:
        require("huggingface_hub", "hub", "push")
    figures = read_figures(args.parity) if args.parity else None
    with contextlib.ExitStack() as stack:
        folder = args.folder or f"{stack.enter_context(tempfile.TemporaryDirectory())}/model"
        report = conversion(
            args.source,
            f"{PREFIX}{folder}",
            model=args.model,
            variant=args.variant,
            shard_size=parse_size(args.shard_size),
        )
        write_card(Path(folder), report, figures)
        if args.folder:
            print("\n".join(report.lines()))
        if args.repo is not None:
            print(upload(Path(folder), args.repo, branch=args.revision, private=args.private))
    return 0


def upload(folder: Path, repo: str, *, branch: str | None = None, private: bool = False) -> str:
    """Upload a folder as a model of the Hub, which is made if it does not exist.

    Args:
        branch: of the repository; its main one if None.

    Returns:
        The address of the commit.

    Raises:
        ConversionError: no right to it, or no connection.
        UsageError: huggingface-hub is not installed.
    """
    hub: Any = require("huggingface_hub", "hub", "push")
    with readable_errors(Remote(repo, branch)):
        api = hub.HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        message = "Upload weights converted by jaxarch"
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(folder), revision=branch, commit_message=message
        )
    return str(commit.commit_url)


def read_figures(path: str) -> list[dict[str, Any]]:
    """The results of `jaxarch parity NAME --json FILE`.

    Raises:
        UsageError: the file is missing or something else.
    """
    try:
        rows = json.loads(Path(path).read_text())
        if not rows or any(
            not {"name", "variant", "ok", "minimum_bound", "bound"} <= row.keys() for row in rows
        ):
            raise ValueError("it holds something else")
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise UsageError(f"{path} is no report of jaxarch parity --json: {first_line(e)}") from None
    return rows


def write_card(folder: Path, report: Report, figures: Sequence[Mapping[str, Any]] | None) -> None:
    """Write the model card; to one that the source had, the part on parity is added.

    Raises:
        UsageError: the figures are of another architecture, or of a proof that failed.
        ConversionError: the file could not be written.
    """
    name, _, variant = report.model.partition(" ")
    part = f"{MARK}\n## Parity\n\n{_parity(name, figures)}\n"
    path = folder / CARD
    if path.is_file():
        text = path.read_text(errors="replace").split(MARK)[0].rstrip()
        write_text(path, f"{text}\n\n{part}")
        report.notes.append(f"{CARD}: the part on parity was added to the source's")
        return
    page = catalog.page(name)
    size = f"{report.size:,} bytes in {len(report.tensors)} tensors"
    dtypes = ", ".join(sorted({t["dtype"] for t in report.tensors.values()}))
    head = "---\ntags:\n- jaxarch\n- flax\n- pytorch\n---\n\n"
    body = (
        f"# {page.cls}\n\n{page.paper}.\n\n"
        f"Architecture `{name}` ({variant}) of jaxarch, under the names of `transformers`: {size}, {dtypes}.\n\n"
        f"```python\nfrom transformers import {page.cls}\n\n"
        f'model = {page.cls}.from_pretrained("ORG/NAME")\n```\n\n'
        f"In JAX: `jaxarch convert hf:ORG/NAME weights/`.\n\n"
    )
    write_text(path, head + body + part)


def _parity(name: str, figures: Sequence[Mapping[str, Any]] | None) -> str:
    """The figures of the proof as a table, or that there are none."""
    if figures is None:
        return (
            "Unverified: no figures were given. The proof that the PyTorch and the JAX model are the same is run by "
            f"`jaxarch parity {name}`."
        )
    rows = [row for row in figures if row["name"] == name]
    if not rows:
        raise UsageError(f"the figures are of {figures[0]['name']}, the model is {name}")
    if failed := [row["variant"] for row in rows if not row["ok"]]:
        raise UsageError(f"parity of {name} {failed[0]} failed: a card cites a proof that holds")
    table = [
        "| variant | outputs | gradients | training | weights there and back |",
        "|---|---|---|---|---|",
        *(
            f"| {r['variant']} | {r['outputs']:.1e} | {r['gradients']:.1e} | {r['training']:.1e} | "
            f"{'exact' if r['weights'] == r['roundtrip'] == 0 else 'differ'} |"
            for r in rows
        ),
    ]
    bound = f"{rows[0]['bound']:.0e}"
    text = f"The largest differences between PyTorch and JAX in float64, relative to the norm; the bound is {bound}."
    return f"{text} Measured by `jaxarch parity {name}`.\n\n" + "\n".join(table)
