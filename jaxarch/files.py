"""Files that are written whole or not at all.

A file is written under a temporary name in the same folder and renamed when complete.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxarch.errors import ConversionError, UsageError

# How far into a file `check_replaceable` looks for the mark of what wrote it.
MARK_BYTES = 1 << 14
# The mark of a PNG and of an HTML page.
PNG_MARK, HTML_MARK = b"Software\0jaxarch", b'<meta name="generator" content="jaxarch">'


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then move the result to `path`.

    Raises:
        ConversionError: the file could not be written; `path` is unchanged and no temporary file is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as e:
        raise ConversionError(f"{path} could not be written: {first_line(e)}") from None
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as e:
        raise ConversionError(f"{path} could not be written: {first_line(e)}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        ConversionError: as `write_whole`.
    """
    write_whole(path, lambda temporary: Path(temporary).write_text(text))


def check_replaceable(path: str | os.PathLike, mark: bytes) -> None:
    """Refuse to replace a file that carries other content than ours.

    Args:
        path: the file to be written. Nothing is there, an empty file, or one that an earlier call wrote.
        mark: bytes that stand in the first `MARK_BYTES` of every file of this kind that we write.

    Raises:
        UsageError: something else is there.
    """
    path = Path(path)
    try:
        if not os.path.lexists(path):
            return
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(MARK_BYTES)
            if not start or mark in start:
                return
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {first_line(e)}") from None
    raise UsageError(f"{path} exists and was not written by this command: choose another name")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
