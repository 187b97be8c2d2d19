"""A corpus of files that somebody made to break a reader of weights: made by functions, nothing is stored.

`cases()` names them by reader. Each must end in one typed line, in short time and little memory, with nothing executed
and nothing written; `measure` runs them in processes of their own and says what each did.
"""

import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

# Made in an empty folder; returns what is opened.
Make = Callable[[Path], Path]


class Case(NamedTuple):
    """One hostile file: the reader it is for, its name, and what makes it."""

    reader: str
    name: str
    make: Make


def of_bytes(file: str, data: bytes) -> Make:
    """A maker of one file."""

    def make(folder: Path) -> Path:
        (folder / file).write_bytes(data)
        return folder / file

    return make


def pipe(folder: Path, file: str) -> Path:
    """A named pipe that nobody writes to."""
    os.mkfifo(folder / file)
    return folder / file


def irregular(reader: str, file: str) -> list[Case]:
    """Cases for a file that is no regular one."""

    def folder_of_that_name(folder: Path) -> Path:
        (folder / file).mkdir()
        return folder / file

    def link(target: str) -> Make:
        def make(folder: Path) -> Path:
            (folder / file).symlink_to(target)
            return folder / file

        return make

    def bound(folder: Path) -> Path:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(file)
        os.chdir(here)
        return folder / file

    makers: dict[str, Make] = {
        "a pipe": partial(pipe, file=file),
        "a link to an endless device": link("/dev/zero"),
        "a link to an empty device": link("/dev/null"),
        "a link to itself": link(file),
        "a link to nothing": link("nowhere"),
        "a folder": folder_of_that_name,
        "a socket": bound,
        "missing": lambda folder: folder / file,
        "empty": of_bytes(file, b""),
        "one byte": of_bytes(file, b"\x80"),
        "noise": of_bytes(file, bytes(range(256)) * 20),
        "text": of_bytes(file, b"<!DOCTYPE html><title>404</title>" * 9),
    }
    return [Case(reader, name, make) for name, make in makers.items()]


def truncated(reader: str, file: str, data: bytes, count: int = 12) -> list[Case]:
    """A good file, cut at `count` places and a byte before its end."""
    places = sorted({len(data) * i // (count + 1) for i in range(1, count + 1)} | {len(data) - 1})
    return [Case(reader, f"cut at byte {n}", of_bytes(file, data[:n])) for n in places]


def table() -> str:
    """The number of cases of each reader, as rows of a table in Markdown."""
    counts = Counter(case.reader for case in cases())
    rows = [
        f"| {reader} | {count} |" for reader, count in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
    ]
    return "\n".join(["| reader | hostile files |", "|---|---|", *rows, f"| together | {counts.total()} |"])


def cases() -> list[Case]:
    """The whole corpus."""
    from hostile import configs, containers, folders, headers, pickles

    return [case for module in (headers, pickles, containers, folders, configs) for case in module.cases()]
