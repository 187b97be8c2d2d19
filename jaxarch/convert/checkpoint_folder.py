"""The folder of one checkpoint: orbax's arrays, a description in JSON, and the manifest of both.

arrays/         the folder of orbax, a flat dictionary of arrays
about.json      what the arrays are
checksums.json  a hash for each array and for about.json
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.convert.manifest import FOLDER_NAME, read_manifest
from jaxarch.convert.orbax import OrbaxReader, orbax_places
from jaxarch.convert.shards import VerifiedReader
from jaxarch.convert.store import StoreWriter
from jaxarch.convert.tensors import TensorInfo, TensorReader, TensorWriter
from jaxarch.errors import ConversionError

ARRAYS, ABOUT, SUMS = "arrays", "about.json", FOLDER_NAME


def open_checkpoint(path: Path) -> TensorReader:
    """A reader of the arrays of a checkpoint, which compares each with the manifest before it is first read.

    A checkpoint of an earlier version has a CRC-32 for each file in place of a hash for each array; these are
    compared at once.

    Raises:
        ConversionError: something is missing or damaged.
    """
    manifest = read_manifest(path)
    if manifest is not None:
        manifest.check_text(ABOUT, path / ABOUT)
        return VerifiedReader(OrbaxReader(path / ARRAYS), manifest, path)
    written = read_json(path / SUMS)
    try:
        expected = {k: (str(np.dtype(v["dtype"])), tuple(v["shape"])) for k, v in written["arrays"].items()}
        sums = dict(written["files"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConversionError(f"{path / SUMS} is damaged: it does not list arrays and files") from None
    _check_files(path, sums)
    reader = OrbaxReader(path / ARRAYS)
    actual = {k: (str(v.numpy), v.shape) for k, v in reader.infos.items()}
    for name in sorted(set(expected) | set(actual)):
        if expected.get(name) != actual.get(name):
            raise ConversionError(
                f"{path} is damaged: {name} is {actual.get(name)}, not {expected.get(name)}"
            )
    return reader


def create_checkpoint(
    path: Path, infos: Mapping[str, TensorInfo], about: str, *, fingerprint: str | None = None
) -> TensorWriter:
    """A writer of a checkpoint of arrays that are known by dtype and shape.

    Args:
        about: the description, in JSON.
        fingerprint: names the content, down to the bytes; a write of it that was killed is continued.

    Raises:
        ConversionError: there is no room for it, another process is writing it, or orbax cannot hold it.
    """
    places = orbax_places(infos, ARRAYS, texts={ABOUT: about})
    return StoreWriter(path, infos, places, fingerprint=fingerprint)


def read_json(path: Path) -> dict[str, Any]:
    """A file of JSON that holds a table.

    Raises:
        ConversionError: it is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file; the checkpoint is incomplete") from None
    except (OSError, ValueError, RecursionError) as e:
        raise ConversionError(f"{path} is damaged: {str(e)[:200]}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is damaged: it holds no table")
    return content


def _check_files(path: Path, written: Mapping[str, Any]) -> None:
    """Compare the CRC-32 of every file with that of an earlier version's manifest, which must name them all."""
    folder = path / ARRAYS
    try:
        actual = {p.relative_to(folder).as_posix(): _crc(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    except OSError as e:
        raise ConversionError(f"{path} could not be read: {e}") from None
    for name in sorted(set(written) | set(actual)):
        if name not in actual:
            raise ConversionError(f"{path} is damaged: {ARRAYS}/{name} is missing")
        if actual[name] != written.get(name):
            raise ConversionError(f"{path} is damaged: {ARRAYS}/{name} has changed since it was written")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
