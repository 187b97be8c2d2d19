"""Files of Flax, .msgpack: the structure is scanned without its numbers, which are read by slices.

The format is that of `flax.serialization`: msgpack, with arrays as extension 1 holding (shape, dtype, bytes), and
large arrays in chunks. A length that lies costs nothing, since nothing is allocated for it.
"""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from jaxarch.convert.dtypes import DTYPES, dtype_name
from jaxarch.convert.extents import contiguous, read_strided
from jaxarch.convert.limits import check_shape
from jaxarch.convert.tensors import Index, Tensor, TensorInfo, concatenate, full_index
from jaxarch.convert.wrappers import AVERAGES, KEYS, choose
from jaxarch.errors import ConversionError, printable
from jaxarch.files import open_regular

SUFFIX = ".msgpack"
MOST_VALUES, MOST_LEVELS, LONGEST_TEXT = 500_000, 64, 1 << 16
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
# What a training state of Flax has beside the variables of the model.
_OTHERS = frozenset(("opt_state", "optimizer", "opt", "tx", "rng", "rngs", *AVERAGES))
_BY_NAME = {(d.names or (d.name,))[0]: d for d in DTYPES.values()}
# First byte -> struct of the number that follows, for the kinds of values with one.
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h"}
_NUMBERS |= {0xD2: ">i", 0xD3: ">q"}
_LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xC7: ">B", 0xC8: ">H", 0xC9: ">I", 0xD9: ">B", 0xDA: ">H"}
_LENGTHS |= {0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}


class Array(NamedTuple):
    """An array in the file: its first byte, shape and dtype."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype


class Chunks(NamedTuple):
    """An array in flat pieces."""

    shape: tuple[int, ...]
    pieces: tuple[Array, ...]


class Bytes(NamedTuple):
    """A run of bytes in the file that is not read."""

    start: int
    size: int
    name: str = "bytes"


class MsgpackReader:
    """A `TensorReader` of one file.

    Args:
        wrapper: the part of the file to take; default: the variables of the model.

    Attributes:
        notes: a line for each thing in the file that is not among the tensors.

    Raises:
        ConversionError: the file is missing or damaged, or holds no arrays.
    """

    def __init__(self, path: Path, wrapper: str | None = None) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            content = _Scanner(self._file, path).content()
            content, others = _variables(content) if wrapper is None else (content, [])
            has_more = isinstance(content, dict) and sum(isinstance(v, dict) for v in content.values()) > 1
            wrappers = () if has_more and "params" in content else KEYS
            chosen = choose(content, lambda v: isinstance(v, Array | Chunks), path, wrapper, wrappers)
            self._tensors = {k: self._tensor(v) for k, v in chosen.tensors.items()}
        except BaseException:
            self._file.close()
            raise
        self.metadata: Mapping[str, str] = chosen.metadata
        self.notes = [*chosen.notes, *others]
        self.infos: Mapping[str, TensorInfo] = {k: t.info for k, t in self._tensors.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """An array, or a part of it; of one in chunks the whole is read."""
        return self._tensors[name].read(index)

    def _tensor(self, value: Array | Chunks) -> Tensor:
        if isinstance(value, Array):

            def read(index: Index) -> np.ndarray:
                strides = contiguous(value.shape, value.dtype.itemsize)
                start = value.start + sum(i.start * s for i, s in zip(index, strides, strict=True))
                shape = [i.stop - i.start for i in index]
                return read_strided(self._file.fileno(), start, shape, strides, value.dtype, str(self.path))

            return Tensor(TensorInfo(dtype_name(value.dtype), value.shape), read)
        flat = concatenate([self._tensor(p) for p in value.pieces])

        def read_chunks(index: Index) -> np.ndarray:
            return np.array(flat.read().reshape(value.shape)[full_index(index, value.shape)], order="C")

        return Tensor(TensorInfo(flat.info.dtype, value.shape), read_chunks)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _variables(content: Any) -> tuple[Any, list[str]]:
    """The variables of a model in a training state, and a line for each other part.

    Beside its parameters a model may have other collections of variables, as batch statistics. Then all of them
    are taken, each under its name.
    """
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        return content, []
    others = [k for k in content if k in _OTHERS]
    return {k: v for k, v in content.items() if k not in others}, [
        f"left out: {printable(k)!r}" for k in others
    ]


class _Scanner:
    """Reads the structure of a file: arrays and long runs of bytes are only located."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.position = self.values = 0
        self._window, self._start = b"", 0

    def content(self) -> Any:
        """The one value of the file."""
        value = self._value(0)
        if self.position != self.size:
            raise self._damaged(f"{self.size - self.position:,} bytes after its end")
        return value

    def _damaged(self, what: str) -> ConversionError:
        return ConversionError(f"{self.path} is not a readable msgpack file: {what} (byte {self.position:,})")

    def _take(self, count: int) -> bytes:
        """The next bytes."""
        if self.position + count > self.size:
            raise self._damaged("it was truncated")
        first = self.position - self._start
        if first < 0 or first + count > len(self._window):
            self._window = os.pread(self.file.fileno(), max(count, 1 << 16), self.position)
            self._start, first = self.position, 0
        self.position += count
        return self._window[first : first + count]

    def _skip(self, count: int) -> int:
        """The position of a run of bytes, which is passed over."""
        start = self.position
        if start + count > self.size:
            raise self._damaged("it was truncated")
        self.position += count
        return start

    def _value(self, level: int) -> Any:
        self.values += 1
        if level > MOST_LEVELS or self.values > MOST_VALUES:
            raise self._damaged(f"more than {MOST_LEVELS} levels or {MOST_VALUES:,} values")
        code = self._take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[code]
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        length = self._length(code)
        if code < 0x90 or code in (0xDE, 0xDF):
            return self._map(length, level)
        if code < 0xA0 or code in (0xDC, 0xDD):
            return [self._value(level + 1) for _ in range(length)]
        if code < 0xC0 or code in (0xD9, 0xDA, 0xDB):
            return self._text(length)
        if code in (0xC4, 0xC5, 0xC6):
            return Bytes(self._skip(length), length)
        return self._extension(length, level)

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._take(struct.calcsize(kind)))[0]

    def _length(self, code: int) -> int:
        if code in _LENGTHS:
            return self._number(_LENGTHS[code])
        if 0xD4 <= code <= 0xD8:
            return 1 << (code - 0xD4)
        if code < 0xC0:
            return code & (0x1F if code >= 0xA0 else 0x0F)
        raise self._damaged(f"no value begins with {code:#x}")

    def _text(self, length: int) -> Any:
        if length > LONGEST_TEXT:
            return Bytes(self._skip(length), length, f"a text of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._damaged("a text is not UTF-8") from None

    def _map(self, length: int, level: int) -> Any:
        result: dict[Any, Any] = {}
        for _ in range(length):
            key = self._value(level + 1)
            if not isinstance(key, str | int) or key in result:
                raise self._damaged(f"the key {printable(key, 60)} of a map is twice there or no text")
            result[key] = self._value(level + 1)
        return self._chunks(result) if _CHUNKED in result else result

    def _extension(self, length: int, level: int) -> Any:
        kind = struct.unpack("b", self._take(1))[0]
        end = self.position + length
        if end > self.size:
            raise self._damaged("it was truncated")
        if kind not in (_ARRAY, _SCALAR):
            return Bytes(
                self._skip(length), length, "a complex number" if kind == _COMPLEX else f"extension {kind}"
            )
        content = self._value(level + 1)
        if self.position != end or not isinstance(content, list) or len(content) != 3:
            raise self._damaged("an array is no (shape, dtype, bytes)")
        shape, name, data = content
        if isinstance(name, Bytes):  # as Flax wrote it for Python 2
            name = os.pread(self.file.fileno(), min(name.size, 64), name.start).decode(errors="replace")
        if name not in _BY_NAME:
            raise self._damaged(f"an array has the dtype {printable(name, 60)}")
        shape, dtype = check_shape(shape, "an array", self.path), _BY_NAME[name]
        if not isinstance(data, Bytes) or math.prod(shape) * dtype.itemsize != data.size:
            raise self._damaged(f"an array of shape {shape} and dtype {name} has another number of bytes")
        return Array(data.start, shape, dtype)

    def _chunks(self, content: Mapping[Any, Any]) -> Any:
        """An array that Flax has cut into pieces of at most 1 GiB."""
        shape, pieces = content.get("shape"), content.get("chunks")
        if not isinstance(shape, dict) or not isinstance(pieces, dict):
            raise self._damaged("an array in chunks has none")
        sizes = check_shape([shape.get(str(i)) for i in range(len(shape))], "an array", self.path)
        arrays = [
            p for i in range(len(pieces)) if isinstance(p := pieces.get(str(i)), Array) and len(p.shape) == 1
        ]
        if len({p.dtype for p in arrays}) != 1 or sum(p.shape[0] for p in arrays) != math.prod(sizes):
            raise self._damaged("an array in chunks has other chunks")
        return Chunks(sizes, tuple(arrays))
