"""Archives of numpy, .npz: arrays read by slices and written one after the other; objects, which are code, refused."""

import io
import json
import lzma
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Self

import ml_dtypes
import numpy as np

from jaxarch import files
from jaxarch.convert.dtypes import DTYPES, dtype_name
from jaxarch.convert.extents import PIECE_BYTES, contiguous, read_strided
from jaxarch.convert.limits import check_names_of_file, check_shape, check_total
from jaxarch.convert.tensors import Index, TensorInfo, full_index
from jaxarch.convert.zip_directory import read_directory
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line, open_regular

SUFFIX, MEMBER = ".npz", ".npy"
# Enough for the header of an array.
_HEADER_BYTES = 1 << 14
# What numpy raises for a damaged header.
_DAMAGE = (
    *(ValueError, OSError, EOFError, TypeError, SyntaxError, tokenize.TokenError),
    *(RecursionError, MemoryError, OverflowError),
)
_DAMAGE_OF_ENTRY = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
# The entry with texts beside the arrays.
_METADATA = "__metadata__"


class Place(NamedTuple):
    """Where an array lies: its first byte, or None in a compressed entry; its dtype in the file and in memory."""

    start: int | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    stored: np.dtype
    dtype: np.dtype


class NpzReader:
    """A `TensorReader` of one archive.

    Attributes:
        notes: a line for each entry that is no array of numbers.

    Raises:
        ConversionError: the file is missing or damaged, or holds Python objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.metadata: dict[str, str] = {}
        self._last: tuple[str, np.ndarray] | None = None
        with ExitStack() as stack:
            self._file = stack.enter_context(open_regular(path))
            self._entries = entries = read_directory(self._file, str(path), packed=True)
            self._verified: set[str] = set()
            self._archive = stack.enter_context(zipfile.ZipFile(self._file))
            names = {k.removesuffix(MEMBER): k for k in entries if k.endswith(MEMBER)}
            self.notes += [
                f"left out: {printable(k)!r} (not an array)" for k in entries if k not in names.values()
            ]
            check_names_of_file(names, path)
            self._places: dict[str, Place] = {}
            for name, member in names.items():
                self._add(name, member, entries[member])
            if not self._places:
                raise ConversionError(
                    f"{path} holds no arrays of numbers{'; ' if self.notes else ''}{', '.join(self.notes[:3])}"
                )
            total = sum(math.prod(p.shape) * p.dtype.itemsize for p in self._places.values())
            check_total(os.fstat(self._file.fileno()).st_size, total, path)
            self._close = stack.pop_all()
        self.infos: Mapping[str, TensorInfo] = {
            k: TensorInfo(dtype_name(p.dtype), p.shape) for k, p in self._places.items()
        }

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """An array, or a part of it; of a compressed one the whole is decompressed."""
        place = self._places[name]
        index = full_index(index, place.shape)
        if place.start is None:
            return np.array(self._unpacked(name, place)[index], order="C")
        self._verify(name)
        start = place.start + sum(i.start * s for i, s in zip(index, place.strides, strict=True))
        shape = [i.stop - i.start for i in index]
        value = read_strided(self._file.fileno(), start, shape, place.strides, place.stored, str(self.path))
        return _native(value, place.dtype)

    def _verify(self, name: str) -> None:
        """Compare the bytes of an entry with their CRC-32, before the first part of it is read."""
        if name in self._verified:
            return
        entry, value = self._entries[name + MEMBER], 0
        for start in range(0, entry.size, PIECE_BYTES):
            piece = os.pread(self._file.fileno(), min(PIECE_BYTES, entry.size - start), entry.start + start)
            value = zlib.crc32(piece, value)
        if value != self._archive.getinfo(name + MEMBER).CRC:
            raise ConversionError(f"{self.path}: {printable(name)} is damaged: its CRC-32 differs")
        self._verified.add(name)

    def _add(self, name: str, member: str, entry: Any) -> None:
        if entry.size < 0:
            start = io.BytesIO(self._inflated(member, 0, _HEADER_BYTES))
        else:
            start = io.BytesIO(os.pread(self._file.fileno(), min(entry.size, _HEADER_BYTES), entry.start))
        place, size, length = self._header(name, start), start.tell(), self._archive.getinfo(member).file_size
        if place is None:
            return
        if size + math.prod(place.shape) * place.stored.itemsize != length:
            raise ConversionError(
                f"{self.path}: {printable(name)} of shape {place.shape} has {length:,} bytes"
            )
        self._places[name] = place._replace(start=None if entry.size < 0 else entry.start + size)

    def _header(self, name: str, stream: BinaryIO) -> Place | None:
        """The header of an array, after which the stream stands at its numbers; None where those are texts."""
        shown = f"{self.path}: {printable(name)}"
        try:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise ConversionError(f"{shown} is of version {version} of the format, which is not read")
            shape, is_fortran, stored = read[version](stream)
        except _DAMAGE as error:
            raise ConversionError(f"{shown} is damaged: {printable(first_line(error))}") from None
        if stored.hasobject:
            raise ConversionError(f"{shown} holds Python objects, which are code: save arrays of numbers")
        shape = check_shape(shape, name, self.path)
        dtype = _dtype(stored)
        if name == _METADATA and stored.kind == "U" and not shape:
            self.metadata = self._texts(stream.read(stored.itemsize), stored)
            return None
        if dtype is None:
            self.notes.append(f"left out: {printable(name)!r} ({printable(stored, 60)})")
            return None
        if stored == np.dtype("V2"):
            self.notes.append(f"{printable(name)!r} has no dtype: read as bfloat16, which numpy stores so")
        strides = (
            contiguous(shape[::-1], stored.itemsize)[::-1]
            if is_fortran
            else contiguous(shape, stored.itemsize)
        )
        return Place(0, shape, strides, stored, dtype)

    def _texts(self, data: bytes, stored: np.dtype) -> dict[str, str]:
        """The texts that `NpzWriter` keeps beside the arrays."""
        try:
            content = json.loads(str(np.frombuffer(data, stored)[0]))
        except (ValueError, IndexError, RecursionError):
            content = None
        if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
            raise ConversionError(f"{self.path}: {_METADATA} is damaged")
        return content

    def _unpacked(self, name: str, place: Place) -> np.ndarray:
        """An array of a compressed entry; the last one is kept, since it is read in slices."""
        if self._last is None or self._last[0] != name:
            self._last = None
            member, size = name + MEMBER, math.prod(place.shape) * place.stored.itemsize
            data = self._inflated(member, self._archive.getinfo(member).file_size - size, size)
            if len(data) != size:
                raise ConversionError(f"{self.path}: {printable(name)} was truncated")
            value = np.ndarray(place.shape, place.stored, data, strides=place.strides)
            self._last = name, _native(np.array(value, order="C"), place.dtype)
        return self._last[1]

    def _inflated(self, member: str, start: int, size: int) -> bytes:
        """At most `size` bytes of a compressed entry."""
        try:
            with self._archive.open(member) as stream:
                stream.read(start)
                return stream.read(size)
        except _DAMAGE_OF_ENTRY as error:
            raise ConversionError(
                f"{self.path}: {printable(member)} is damaged: {first_line(error)}"
            ) from None

    def close(self) -> None:
        """Release the file."""
        self._close.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class NpzWriter:
    """A `TensorWriter` of one archive: arrays one after the other, not compressed, as `numpy.savez` does.

    Arrays of a dtype that numpy saves without its name, as bfloat16, have one field of that name.

    Raises:
        ConversionError: a name that no entry of an archive may have.
    """

    def __init__(
        self, path: Path, infos: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None
    ) -> None:
        check_names_of_file(infos, path)
        for name in infos:
            if name.startswith("/") or "\\" in name or ".." in name.split("/") or name == _METADATA:
                raise ConversionError(
                    f"{path}: {printable(name)!r} cannot be the name of an entry of an archive"
                )
        self.path, self.infos = path, infos
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = files.private_name(path)
        self._archive = zipfile.ZipFile(self._temporary, "w")
        self._open: tuple[str, IO[bytes], int] | None = None
        if metadata:
            with self._archive.open(_METADATA + MEMBER, "w") as stream:
                np.lib.format.write_array(stream, np.array(json.dumps(dict(metadata))))

    def write(self, name: str, value: np.ndarray) -> None:
        """Append an array, or the next part of it in C order."""
        if self._open is None:
            stream = self._archive.open(name + MEMBER, "w", force_zip64=True)
            self._open = name, stream, math.prod(self.infos[name].shape)
            _write_header(stream, self.infos[name])
        current, stream, left = self._open
        if current != name or value.size > left:
            raise ConversionError(
                f"{self.path}: {printable(name)!r} comes before {printable(current)!r} is whole"
            )
        stream.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        self._open = current, stream, left - value.size
        if left == value.size:
            stream.close()
            self._open = None

    def finish(self) -> None:
        """Read the archive again, and give it its name."""
        missing = set(self.infos) - {k.removesuffix(MEMBER) for k in self._archive.namelist()}
        if self._open is not None or missing:
            raise ConversionError(
                f"{self.path}: {printable(min(missing, default=''))!r} was not written whole"
            )
        self._archive.close()
        with zipfile.ZipFile(self._temporary) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ConversionError(
                    f"{self.path}: {printable(damaged)} differs on the disk from what was written"
                )
        files.move(self._temporary, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open[1].close()
        self._archive.close()
        files.discard(self._temporary)


def _write_header(stream: IO[bytes], info: TensorInfo) -> None:
    dtype = info.numpy
    if dtype.isbuiltin != 1:
        dtype = np.dtype([(dtype.names[0] if dtype.names else dtype.name, f"V{dtype.itemsize}")])
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": info.shape}
    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]


def _dtype(stored: np.dtype) -> np.dtype | None:
    """The dtype of numbers; None of texts and the like. Those of ml_dtypes are one field under their name."""
    if stored == np.dtype("V2"):
        return np.dtype(ml_dtypes.bfloat16)
    if stored.names is not None and len(stored.names) == 1:
        named = [d for d in DTYPES.values() if (d.names or (d.name,)) == stored.names]
        return named[0] if named and named[0].itemsize == stored.itemsize else None
    native = stored.newbyteorder("=")
    return native if native in DTYPES.values() else None


def _native(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (
        value.view(dtype) if value.dtype.names or value.dtype.kind == "V" else value.astype(dtype, copy=False)
    )
