"""Folders of torch.distributed.checkpoint, read without a process group and without torch.

`.metadata` is a pickle that says which file holds which part of a tensor; each part is a torch file of its own within
that file.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from jaxarch.convert.dtypes import dtype_name
from jaxarch.convert.limits import check_shape, check_total, is_count
from jaxarch.convert.tensors import Index, TensorInfo, full_index
from jaxarch.convert.torch_reader import DTYPES, MOST_PICKLE_BYTES, Place, part_of, place_in
from jaxarch.convert.unpickle import PLAIN_DATA, Global, Record, read_pickle
from jaxarch.convert.wrappers import choose
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line, open_regular

METADATA = ".metadata"
MOST_PARTS = 100_000
_ROOM = "torch.distributed.checkpoint."
_TENSOR, _PROPERTIES = f"{_ROOM}metadata.TensorStorageMetadata", f"{_ROOM}metadata.TensorProperties"


class Part(NamedTuple):
    """A part of a tensor: where it begins and how large it is, and the bytes in a file that hold it."""

    low: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    size: int


class Stored(NamedTuple):
    """A tensor of the folder and its parts, which cover it once."""

    info: TensorInfo
    parts: tuple[Part, ...]


class DcpReader:
    """A `TensorReader` of one folder.

    Args:
        wrapper: the part of the checkpoint to take, such as "ema"; default: the model's own weights.

    Attributes:
        notes: a line for each thing in the folder that is not among the tensors.

    Raises:
        ConversionError: a file is missing or damaged, or the parts of a tensor do not cover it.
    """

    def __init__(self, path: Path, wrapper: str | None = None) -> None:
        self.path = path
        self._files: dict[str, BinaryIO] = {}
        self._places: dict[Part, Place] = {}
        try:
            content = _tree(_metadata(path / METADATA), path)
            chosen = choose(content, lambda v: isinstance(v, Stored), path, wrapper)
            self._tensors: dict[str, Stored] = chosen.tensors
            for tensor in self._tensors.values():
                for part in tensor.parts:
                    self._check(part)
            stored = sum(os.fstat(f.fileno()).st_size for f in self._files.values())
            logical = sum(math.prod(t.info.shape) * t.info.numpy.itemsize for t in self._tensors.values())
            check_total(stored, logical, path)
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, str] = chosen.metadata
        self.notes = chosen.notes
        self.infos: Mapping[str, TensorInfo] = {k: t.info for k, t in self._tensors.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it, from the parts that it meets."""
        tensor = self._tensors[name]
        index = full_index(index, tensor.info.shape)
        result = np.empty([s.stop - s.start for s in index], tensor.info.numpy)
        for part in tensor.parts:
            bounds = [
                (max(s.start, low), min(s.stop, low + n))
                for s, low, n in zip(index, part.low, part.shape, strict=True)
            ]
            if all(start < stop for start, stop in bounds):
                inner = tuple(slice(a - low, b - low) for (a, b), low in zip(bounds, part.low, strict=True))
                outer = tuple(
                    slice(a - s.start, b - s.start) for (a, b), s in zip(bounds, index, strict=True)
                )
                place = self._place(name, part, tensor.info)
                result[outer] = part_of(self._files[part.file], place, inner, self.path)
        return result

    def _check(self, part: Part) -> None:
        if part.file not in self._files:
            if Path(part.file).name != part.file or "\\" in part.file:
                raise ConversionError(
                    f"{self.path} names {printable(part.file)}: a file must lie in the folder"
                )
            self._files[part.file] = open_regular(self.path / part.file)
        if part.start + part.size > os.fstat(self._files[part.file].fileno()).st_size:
            raise ConversionError(f"{self.path / part.file} was truncated")

    def _place(self, name: str, part: Part, info: TensorInfo) -> Place:
        if part not in self._places:
            place = place_in(self._files[part.file], name, self.path / part.file, (part.start, part.size))
            if (place.shape, dtype_name(place.dtype)) != (part.shape, info.dtype):
                raise ConversionError(
                    f"{self.path / part.file}: a part of {printable(name)} is of another kind"
                )
            self._places[part] = place
        return self._places[part]

    def close(self) -> None:
        """Release the files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _metadata(path: Path) -> dict[str, Any]:
    """The attributes of the pickled `Metadata`."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > MOST_PICKLE_BYTES:
            raise ConversionError(f"{path} has {size:,} bytes, at most {MOST_PICKLE_BYTES:,} are read")
        data = os.pread(file.fileno(), size, 0)
    try:
        value = read_pickle(io.BytesIO(data), (*PLAIN_DATA, _ROOM))
    except UnpicklingError as error:
        raise ConversionError(f"{path} is not the metadata of a checkpoint: {first_line(error)}") from None
    if not isinstance(value, Record) or not isinstance(value.state, dict):
        raise ConversionError(f"{path} is not the metadata of a checkpoint")
    return value.state


def _tree(metadata: dict[str, Any], path: Path) -> dict[Any, Any]:
    """The checkpoint as nested mappings, as far as it says how its names came about."""
    described, stored = _table(metadata, "state_dict_metadata", path), _table(metadata, "storage_data", path)
    paths = metadata.get("planner_data")
    parts: dict[str, list[tuple[dict[Any, Any], dict[Any, Any]]]] = {}
    for key, where in stored.items():
        at = key.state if isinstance(key, Record) and isinstance(key.state, dict) else {}
        parts.setdefault(str(at.get("fqn")), []).append(
            (at, where.state if isinstance(where, Record) else {})
        )
    if len(stored) > MOST_PARTS:
        raise ConversionError(f"{path} has {len(stored):,} parts, at most {MOST_PARTS:,} are read")
    tree: dict[Any, Any] = {}
    for name, what in described.items():
        keys = paths.get(name) if isinstance(paths, dict) else None
        keys = keys if isinstance(keys, tuple) and keys and len(keys) < 32 else (name,)
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConversionError(f"{path}: {printable(name)} lies within a tensor")
        node[keys[-1]] = _stored(name, what, parts.get(str(name), []), path)
    return tree


def _table(metadata: dict[str, Any], key: str, path: Path) -> dict[Any, Any]:
    value = metadata.get(key)
    if not isinstance(value, dict):
        raise ConversionError(f"{path / METADATA} has no {key}")
    return value


def _stored(name: str, what: Any, parts: Sequence[tuple[dict[Any, Any], dict[Any, Any]]], path: Path) -> Any:
    """A tensor with its parts; anything else as it is."""
    if not isinstance(what, Record) or what.name != _TENSOR or not isinstance(what.state, dict):
        return what
    shape = check_shape(what.state.get("size"), name, path)
    properties = what.state.get("properties")
    state = properties.state if isinstance(properties, Record) and properties.name == _PROPERTIES else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    kind = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if kind not in DTYPES or (DTYPES[kind].kind == "V" and DTYPES[kind].names == ("float4_e2m1fn_x2",)):
        raise ConversionError(f"{path}: {printable(name)} has the dtype {printable(kind)}, which is not read")
    sizes = {}
    for chunk in what.state.get("chunks") or ():
        state = chunk.state if isinstance(chunk, Record) and isinstance(chunk.state, dict) else {}
        sizes[check_shape(state.get("offsets"), name, path)] = check_shape(state.get("sizes"), name, path)
    found = []
    for at, where in parts:
        low = at.get("offset")
        low = (0,) * len(shape) if low is None else check_shape(low, name, path)
        file, start, size = (where.get(k) for k in ("relative_path", "offset", "length"))
        if where.get("transform_descriptors"):
            raise ConversionError(f"{path}: {printable(name)} is compressed; save it without transforms")
        if low not in sizes or not isinstance(file, str) or not is_count(start) or not is_count(size):
            raise ConversionError(f"{path}: the parts of {printable(name)} are damaged")
        found.append(Part(low, sizes[low], file, start, size))  # type: ignore[arg-type]
    _check_cover(name, shape, found, path)
    return Stored(TensorInfo(dtype_name(DTYPES[kind]), shape), tuple(found))


def _check_cover(name: str, shape: tuple[int, ...], parts: Sequence[Part], path: Path) -> None:
    """Refuse parts that overlap, leave a gap, or lie outside the tensor."""
    damaged = ConversionError(f"{path}: the parts of {printable(name)} do not cover its shape {shape} once")
    if any(len(p.low) != len(shape) or len(p.shape) != len(shape) for p in parts):
        raise damaged
    if sum(math.prod(p.shape) for p in parts) != math.prod(shape):
        raise damaged
    low = np.array([p.low for p in parts], np.int64).reshape(len(parts), len(shape))
    high = low + np.array([p.shape for p in parts], np.int64).reshape(low.shape)
    if (high > np.array(shape, np.int64)).any():
        raise damaged
    for i in range(len(parts)):
        overlap = ((low[i] < high[i + 1 :]) & (low[i + 1 :] < high[i])).all(1)
        if overlap.any() and math.prod(parts[i].shape):
            raise damaged
