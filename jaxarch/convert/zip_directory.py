"""The directory of a zip archive whose entries are stored plainly, checked before anything of them is read.

torch's files and numpy's .npz are such archives. Entries that lie one over the other, or are compressed, would let
a small file stand for terabytes.
"""

import io
import os
import struct
import zipfile
from typing import Any, BinaryIO, NamedTuple

from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line

MOST_ENTRIES = 200_000
_END, _WIDE_END, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x03\x04"
_LOCAL_BYTES = 30


class Entry(NamedTuple):
    """Where the bytes of an entry lie in the archive."""

    start: int
    size: int


def read_directory(
    file: BinaryIO, name: str, *, packed: bool = False, window: tuple[int, int] | None = None
) -> dict[str, Entry]:
    """The entries of an archive by name. With `packed`, compressed ones have the size -1 and no place.

    Args:
        window: the start and the size of the archive, where it is a part of the file.

    Raises:
        ConversionError: it is no archive, is damaged, or has entries that are encrypted, compressed, too many,
            twice there, or outside the file or one over the other.
    """
    base, length = window or (0, os.fstat(file.fileno()).st_size)
    stream = Window(file.fileno(), base, length)
    most, declared = _count(stream)
    if most > MOST_ENTRIES:
        raise ConversionError(f"{name} has {most:,} entries, at most {MOST_ENTRIES:,} are read")
    try:
        with zipfile.ZipFile(stream) as archive:
            listed = archive.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
        OverflowError,
        struct.error,
    ) as error:
        raise ConversionError(f"{name} is not a readable archive: {first_line(error)}") from None
    if declared != len(listed):
        raise ConversionError(
            f"{name} is not a readable archive: it has {len(listed):,} of {declared:,} entries"
        )
    if listed and min(info.header_offset for info in listed) != 0:
        raise ConversionError(f"{name} is not a readable archive: something stands before it")
    entries: dict[str, Entry] = {}
    for info in listed:
        shown = printable(info.filename)
        if info.filename in entries:
            raise ConversionError(f"{name} has the entry {shown} twice")
        if info.flag_bits & 1:
            raise ConversionError(f"{name}: the entry {shown} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED:
            if not packed:
                raise ConversionError(f"{name}: the entry {shown} is compressed; only stored ones are read")
            entries[info.filename] = Entry(info.header_offset, -1)
        elif info.file_size != info.compress_size:
            raise ConversionError(f"{name}: the entry {shown} has two sizes")
        else:
            start = info.header_offset + _header(stream, info.header_offset, name)
            entries[info.filename] = Entry(start, info.file_size)
    _check_places(entries, length, name)
    return {k: entry._replace(start=base + entry.start) for k, entry in entries.items()}


class Window(io.RawIOBase):
    """A part of a file as a stream of its own."""

    def __init__(self, handle: int, start: int, size: int) -> None:
        self.handle, self.start, self.size, self.position = handle, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("before the start of the file")
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, target: Any) -> int:
        data = self.at(self.position, len(target))
        target[: len(data)] = data
        self.position += len(data)
        return len(data)

    def at(self, position: int, count: int) -> bytes:
        """At most `count` bytes from a position on."""
        count = min(count, self.size - position) if 0 <= position <= self.size else 0
        return os.pread(self.handle, count, self.start + position) if count else b""


def _check_places(entries: dict[str, Entry], length: int, name: str) -> None:
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]):
        if entry.start < end or entry.start + entry.size > length:
            raise ConversionError(f"{name}: the entry {printable(key)} lies over another or outside the file")
        end = entry.start + max(entry.size, 0)


def _header(stream: Window, offset: int, name: str) -> int:
    """The length of the header that stands before an entry's bytes."""
    header = stream.at(offset, _LOCAL_BYTES)
    if len(header) != _LOCAL_BYTES or not header.startswith(_LOCAL):
        raise ConversionError(f"{name} is not a readable archive: no header at byte {offset:,}")
    names, extra = struct.unpack_from("<HH", header, 26)
    return _LOCAL_BYTES + names + extra


def _count(stream: Window) -> tuple[int, int]:
    """The most entries that the directory has room for, at 46 bytes or more each, and how many it declares."""
    tail = stream.at(max(0, stream.size - (1 << 17)), 1 << 17)
    position, wide = tail.rfind(_END), tail.rfind(_WIDE_END)
    if not 0 <= position <= len(tail) - 22:
        return 0, 0  # no archive; zipfile says so
    declared, size = struct.unpack_from("<HI", tail, position + 10)
    if 0 <= wide <= len(tail) - 56:
        declared, size = struct.unpack_from("<QQ", tail, wide + 32)
    return min(size, stream.size) // 46, declared
