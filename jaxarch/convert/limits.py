"""What is refused of a file that nobody vouches for, before anything is allocated or built for it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line

LONGEST_NAME = 1000
MOST_AXES = 32
# Values may be shared between tensors, as tied weights are; a small file that stands for terabytes is refused.
MOST_TIMES, SPARE_BYTES = 8, 64 << 20


def check_names_of_file(names: Iterable[object], path: object) -> None:
    """Refuse names of tensors that no model has and that another format could not hold.

    Raises:
        ConversionError: one that is no text, too long, or has control characters.
    """
    for name in names:
        if not isinstance(name, str):
            raise ConversionError(f"{path}: the name {printable(name)} is not a text")
        if len(name) > LONGEST_NAME:
            raise ConversionError(
                f"{path}: the name {printable(name, 60)} is longer than {LONGEST_NAME:,} characters"
            )
        if not name.isprintable():
            raise ConversionError(f"{path}: the name {printable(name)} has characters that are not printable")


def check_shape(shape: object, name: str, path: object) -> tuple[int, ...]:
    """A shape as a tuple of sizes.

    Raises:
        ConversionError: it is something else, or has too many axes for numpy.
    """
    if not isinstance(shape, list | tuple) or not all(is_count(n) for n in shape):
        raise ConversionError(f"{path}: the shape of {printable(name)} is not a list of sizes")
    if len(shape) > MOST_AXES:
        raise ConversionError(
            f"{path}: {printable(name)} has {len(shape)} axes, at most {MOST_AXES} are read"
        )
    return tuple(shape)


def check_total(
    stored: int, logical: int, path: object, times: int = MOST_TIMES, spare: int = SPARE_BYTES
) -> None:
    """Refuse tensors that are together much larger than the bytes they are made of.

    Raises:
        ConversionError: as said.
    """
    if logical > times * stored + spare:
        raise ConversionError(
            f"{path} would become {logical:,} bytes of tensors from {stored:,} stored ones: "
            "save tensors that are expanded or shared as .contiguous() copies"
        )


def check_folder(folder: Path) -> int:
    """The bytes of the files in a folder, which must all be regular ones that lie in it.

    Raises:
        ConversionError: a pipe or a device, or a link that leads out of the folder.
    """
    total, inside = 0, folder.resolve()
    for parent, names, files in os.walk(folder):
        for name in (*names, *files):
            path = Path(parent, name)
            try:
                if path.is_symlink() and not path.resolve().is_relative_to(inside):
                    raise ConversionError(f"{path} is a link out of the folder")
                if not (path.is_file() or path.is_dir()):
                    raise ConversionError(f"{path} is not a regular file")
                total += path.stat().st_size if path.is_file() else 0
            except (OSError, RuntimeError) as error:
                raise ConversionError(f"{path} could not be read: {first_line(error)}") from None
    return total


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON with these keys and values, for `json.loads`.

    Raises:
        ValueError: a key is there twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return result


def is_count(value: object) -> bool:
    """Whether a value is an integer from 0 to 2^62."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
