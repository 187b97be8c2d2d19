"""The directory of a zip archive whose entries are stored plainly, checked before anything of them is read.

torch's files and numpy's .npz are such archives. Entries that lie one over the other, or are compressed, would let
a small file stand for terabytes.
"""

import os
import struct
import zipfile
from typing import BinaryIO, NamedTuple

from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line

MOST_ENTRIES = 200_000
_END, _LOCAL = b"PK\x05\x06", b"PK\x03\x04"
_LOCAL_BYTES = 30


class Entry(NamedTuple):
    """Where the bytes of an entry lie in the archive."""

    start: int
    size: int


def read_directory(stream: BinaryIO, name: str, *, packed: bool = False) -> dict[str, Entry]:
    """The entries of an archive by name. With `packed`, compressed ones have the size -1 and no place.

    Raises:
        ConversionError: it is no archive, is damaged, or has entries that are encrypted, compressed, too many,
            twice there, or outside the file or one over the other.
    """
    length = os.fstat(stream.fileno()).st_size
    if (count := _count(stream, length)) > MOST_ENTRIES:
        raise ConversionError(f"{name} has {count:,} entries, at most {MOST_ENTRIES:,} are read")
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
    return entries


def _check_places(entries: dict[str, Entry], length: int, name: str) -> None:
    end = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]):
        if entry.start < end or entry.start + entry.size > length:
            raise ConversionError(f"{name}: the entry {printable(key)} lies over another or outside the file")
        end = entry.start + max(entry.size, 0)


def _header(stream: BinaryIO, offset: int, name: str) -> int:
    """The length of the header that stands before an entry's bytes."""
    header = os.pread(stream.fileno(), _LOCAL_BYTES, offset) if offset >= 0 else b""
    if len(header) != _LOCAL_BYTES or not header.startswith(_LOCAL):
        raise ConversionError(f"{name} is not a readable archive: no header at byte {offset:,}")
    names, extra = struct.unpack_from("<HH", header, 26)
    return _LOCAL_BYTES + names + extra


def _count(stream: BinaryIO, length: int) -> int:
    """An upper bound of the number of entries, from the size of the directory: an entry takes 46 bytes or more."""
    tail = os.pread(stream.fileno(), 1 << 17, max(0, length - (1 << 17)))
    position = tail.rfind(_END)
    if position < 0 or position + 22 > len(tail):
        return 0  # no archive; zipfile says so
    size = struct.unpack_from("<I", tail, position + 12)[0]
    if size == 0xFFFFFFFF or b"PK\x06\x06" in tail:
        wide = tail.rfind(b"PK\x06\x06")
        size = struct.unpack_from("<Q", tail, wide + 40)[0] if 0 <= wide <= len(tail) - 56 else 0
    return min(size, length) // 46
