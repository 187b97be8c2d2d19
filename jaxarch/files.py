"""Files that are written whole or not at all.

A file is written under a temporary name in the same folder and renamed when complete.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxarch.errors import ConversionError


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
