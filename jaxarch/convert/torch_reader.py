"""Tensors of torch's files, zip archives and those of torch before 1.6, without torch: read by slices, nothing run.

The pickle is read as plain values and every tensor is checked against the bytes that the file has for it before
one of them is read.
"""

import io
import math
import os
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from jaxarch.arrays import CARRIED, EXTENDED, FLOAT4, FLOAT4_PAIRS, unpack
from jaxarch.convert.dtypes import dtype_name
from jaxarch.convert.extents import extent, read_strided
from jaxarch.convert.limits import check_shape, check_total, is_count
from jaxarch.convert.tensors import Index, TensorInfo, full_index
from jaxarch.convert.unpickle import Record, Storage, StoredTensor, Unreadable, read_pickle
from jaxarch.convert.wrappers import choose
from jaxarch.convert.zip_directory import Entry, read_directory
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line, open_regular

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
PICKLE = "data.pkl"
MOST_PICKLE_BYTES = 64 << 20
_STORAGES: Mapping[str, str] = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_PAIRS = np.dtype([(FLOAT4_PAIRS, "V1")])
DTYPES: Mapping[str, np.dtype] = {
    **{
        n: np.dtype(n)
        for n in ("uint16", "uint32", "uint64", *sorted(set(_STORAGES.values()) - {"bfloat16"}))
    },
    **EXTENDED,
    **CARRIED,
    FLOAT4_PAIRS: _PAIRS,
}


class Place(NamedTuple):
    """Where a tensor lies: its first byte, shape, strides in bytes, dtype in the file, and how it is finished."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    conjugate: bool = False
    negative: bool = False
    swapped: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TorchReader:
    """A `TensorReader` of one file.

    Args:
        wrapper: the part of the file to take, such as "ema"; default: the model's own weights.

    Attributes:
        notes: a line for each thing in the file that is not among the tensors, and for the choice of a part.

    Raises:
        ConversionError: the file is missing, damaged, or holds something else than a state_dict of tensors.
    """

    def __init__(self, path: Path, wrapper: str | None = None) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            content, storages, swapped = _content(self._file, path)
            chosen = choose(content, lambda v: isinstance(v, StoredTensor | Unreadable), path, wrapper)
            self._places = {k: _place(k, v, storages, swapped, path) for k, v in chosen.tensors.items()}
            stored = os.fstat(self._file.fileno()).st_size
            check_total(stored, sum(p.nbytes for p in self._places.values()), path)
        except BaseException:
            self._file.close()
            raise
        self.metadata: Mapping[str, str] = chosen.metadata
        self.notes = chosen.notes
        self.infos: Mapping[str, TensorInfo] = {k: _info(p) for k, p in self._places.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it; only the bytes of that part are read."""
        return part_of(self._file, self._places[name], full_index(index, self.infos[name].shape), self.path)

    @property
    def ties(self) -> dict[str, str]:
        """Tensors that are the same bytes as one before them, and that one."""
        first: dict[Place, str] = {}
        repeated = {}
        for name, place in self._places.items():
            if (original := first.setdefault(place, name)) != name and place.nbytes:
                repeated[name] = original
        return repeated

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def part_of(file: BinaryIO, place: Place, index: Index, path: Path) -> np.ndarray:
    """The part of a tensor that an index of full slices names, as a contiguous array."""
    if place.dtype == _PAIRS:
        return _pairs(file, place, index, path)
    start = place.start + sum(i.start * s for i, s in zip(index, place.strides, strict=True))
    shape = [i.stop - i.start for i in index]
    value = read_strided(file.fileno(), start, shape, place.strides, place.dtype, str(path))
    value = _swapped(value) if place.swapped and value.dtype.kind != "V" else value
    value = value.conj() if place.conjugate else value
    return -value if place.negative else value


def _pairs(file: BinaryIO, place: Place, index: Index, path: Path) -> np.ndarray:
    """Numbers of four bits: the bytes that hold the part asked for, taken apart."""
    *outer, last = index
    at = [*outer, slice(last.start // 2, -(-last.stop // 2))]
    start = place.start + sum(i.start * s for i, s in zip(at, place.strides, strict=True))
    shape = [i.stop - i.start for i in at]
    packed = read_strided(file.fileno(), start, shape, place.strides, place.dtype, str(path))
    numbers = unpack(packed.view(np.uint8), FLOAT4, (*shape[:-1], 2 * shape[-1]))
    skipped = 2 * at[-1].start
    return np.array(numbers[..., last.start - skipped : last.stop - skipped], order="C")


def place_in(file: BinaryIO, name: str, path: Path, window: tuple[int, int]) -> Place:
    """Where the one tensor lies that a part of a file holds, itself a torch file.

    Raises:
        ConversionError: it is damaged.
    """
    try:
        content, storages, swapped = _archive(file, path, window)
    except UnpicklingError as error:
        raise ConversionError(f"{path}: {printable(name)} is damaged: {first_line(error)}") from None
    if not isinstance(content, StoredTensor):
        raise ConversionError(f"{path}: {printable(name)} is no tensor")
    return _place(name, content, storages, swapped, path)


def check_torch_file(path: Path) -> None:
    """Check everything that is in a file before torch sees it, as `TorchReader` does with weights.

    Raises:
        ConversionError: it is damaged, would allocate what it does not hold, or call what is not a tensor.
    """
    with open_regular(path) as file:
        content, storages, swapped = _content(file, path)
        pending, met, total = [content], set(), 0
        while pending:
            value = pending.pop()
            if isinstance(value, StoredTensor | Unreadable):
                total += _place("a tensor", value, storages, swapped, path).nbytes
            elif isinstance(value, Record) and value.name == "builtins.bytearray":
                raise ConversionError(f"{path} holds more than tensors and numbers: {value.name}")
            elif isinstance(value, Mapping | list | tuple) and id(value) not in met:
                met.add(id(value))
                pending += value.values() if isinstance(value, Mapping) else value
        check_total(os.fstat(file.fileno()).st_size, total, path)


def _info(place: Place) -> TensorInfo:
    if place.dtype == _PAIRS:
        return TensorInfo("F4", (*place.shape[:-1], 2 * place.shape[-1]))
    return TensorInfo(dtype_name(place.dtype), place.shape)


def _content(file: BinaryIO, path: Path) -> tuple[Any, Callable[[Storage], Entry], bool]:
    """What a file holds, where the bytes of each storage lie, and whether they are big-endian."""
    start = os.pread(file.fileno(), 512, 0)
    try:
        if start.startswith(b"PK"):
            return _archive(file, path)
        if start[257:262] == b"ustar" or not start:
            what = (
                "is empty" if not start else "is of a torch before 0.4 (tar): save it again with a newer one"
            )
            raise ConversionError(f"{path} {what}")
        return _legacy(file, path)
    except (UnpicklingError, UnicodeError, struct.error) as error:
        raise ConversionError(f"{path} is not a readable torch weight file: {first_line(error)}") from None


def _archive(
    file: BinaryIO, path: Path, window: tuple[int, int] | None = None
) -> tuple[Any, Callable[[Storage], Entry], bool]:
    entries = read_directory(file, str(path), window=window)
    if any(k.count("/") == 1 and k.endswith("/constants.pkl") for k in entries):
        raise ConversionError(f"{path} is a TorchScript model, which is code: save model.state_dict()")
    folders = [k.removesuffix(PICKLE) for k in entries if k.endswith(f"/{PICKLE}") and k.count("/") == 1]
    if len(folders) != 1:
        raise ConversionError(f"{path} is not a readable torch weight file: it has no {PICKLE}")
    (folder,) = folders

    def text(name: str) -> bytes:
        entry = entries.get(folder + name, Entry(0, 0))
        if entry.size > MOST_PICKLE_BYTES:
            raise ConversionError(
                f"{path}: {name} has {entry.size:,} bytes, at most {MOST_PICKLE_BYTES:,} are read"
            )
        return os.pread(file.fileno(), entry.size, entry.start)

    order = text("byteorder") or b"little"
    if order not in (b"little", b"big"):
        raise ConversionError(f"{path}: unknown byte order {printable(order)}")

    def storage(wanted: Storage) -> Entry:
        return entries[f"{folder}data/{wanted.key}"]

    return read_pickle(io.BytesIO(text(PICKLE))), storage, order == b"big"


def _legacy(file: BinaryIO, path: Path) -> tuple[Any, Callable[[Storage], Entry], bool]:
    """Pickles of a number, a version, the machine, the content and the keys of storages; then those, with lengths."""
    stream = io.BytesIO(os.pread(file.fileno(), MOST_PICKLE_BYTES, 0))
    if (read_pickle(stream), read_pickle(stream)) != (MAGIC, PROTOCOL):
        raise UnpicklingError("it is damaged or of another kind")
    machine, named = read_pickle(stream), dict[str, Storage]()
    content, keys = read_pickle(stream, storages=named), read_pickle(stream)
    position, end = stream.tell(), os.fstat(file.fileno()).st_size
    entries: dict[str, Entry] = {}
    # A length in elements stands before the bytes of each storage.
    for key in keys if isinstance(keys, list) else ():
        if key not in named or key in entries:
            raise UnpicklingError("its list of storages is damaged")
        size = _storage_bytes(named[key], path)
        length = os.pread(file.fileno(), 8, position)
        if len(length) < 8 or position + 8 + size > end:
            raise UnpicklingError("it was truncated")
        if int.from_bytes(length, sys.byteorder) * _width(named[key], path) != size:
            raise UnpicklingError(f"storage {printable(key)} has two lengths")
        entries[key] = Entry(position + 8, size)
        position += 8 + size
    swapped = isinstance(machine, dict) and machine.get("little_endian") is False
    return content, lambda wanted: entries[wanted.key], swapped


def _width(storage: Storage, path: Path) -> int:
    """The bytes of an element of a storage."""
    if storage.kind not in _STORAGES:
        raise ConversionError(
            f"{path} has a {printable(storage.kind)}: save the tensors dequantized, on the CPU"
        )
    return DTYPES[_STORAGES[storage.kind]].itemsize


def _storage_bytes(storage: Storage, path: Path) -> int:
    if not is_count(storage.count):
        raise ConversionError(f"{path}: a storage has {printable(storage.count)} elements")
    return storage.count * _width(storage, path)


def _place(
    name: str,
    tensor: StoredTensor | Unreadable,
    storages: Callable[[Storage], Entry],
    swapped: bool,
    path: Path,
) -> Place:
    """Where a tensor lies, after checks that it lies within its storage.

    Raises:
        ConversionError: it does not, or its description is no valid one.
    """
    shown = printable(name)
    if isinstance(tensor, Unreadable):
        raise ConversionError(f"{path}: {shown} is {tensor.name}: save a plain dense tensor on the CPU")
    size = _storage_bytes(tensor.storage, path)
    try:
        entry = storages(tensor.storage)
    except KeyError:
        raise ConversionError(f"{path} lacks the values of {shown}") from None
    kind = tensor.dtype or _STORAGES[tensor.storage.kind]
    if kind not in DTYPES:
        raise ConversionError(f"{path}: {shown} has the dtype {printable(kind)}, which is not read")
    dtype = DTYPES[kind]
    shape, steps = check_shape(tensor.shape, name, path), check_shape(tensor.stride, name, path)
    if len(shape) != len(steps) or not is_count(tensor.offset) or (kind == FLOAT4_PAIRS and not shape):
        raise ConversionError(f"{path}: {shown} has the shape {shape} with {len(steps)} strides")
    strides = tuple(s * dtype.itemsize for s in steps)
    first = tensor.offset * dtype.itemsize
    if entry.size != size or (0 not in shape and first + extent(shape, strides, dtype.itemsize) > size):
        raise ConversionError(f"{path}: {shown} of shape {shape} lies outside its {entry.size:,} bytes")
    flags = tensor.flags or {}
    if not isinstance(flags, dict) or (flags.get("conj") and dtype.kind != "c"):
        raise ConversionError(f"{path}: {shown} has flags that are not known")
    conjugate, negative = bool(flags.get("conj")), bool(flags.get("neg"))
    return Place(entry.start + first, shape, strides, dtype, conjugate, negative, swapped)


def _swapped(value: np.ndarray) -> np.ndarray:
    """The numbers of a big-endian file; the parts of a complex one each for itself."""
    width = value.dtype.itemsize // (2 if value.dtype.kind == "c" else 1)
    return value.reshape(-1).view(f"u{width}").byteswap().view(value.dtype).reshape(value.shape)
