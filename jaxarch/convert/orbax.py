"""Checkpoints of orbax, tensor by tensor: read through tensorstore, never through JAX; written in a form orbax reads.

JAX without x64 has no arrays of 64 bits, and orbax reads in threads of its own, where `jax.enable_x64` of the caller
says nothing. What is written here is zarr without compression, a folder for each array, whose chunks are files of plain
bytes.
"""

import ast
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from jaxarch.convert.limits import check_folder, check_names_of_file, check_total, unique
from jaxarch.convert.store import Places, Segment
from jaxarch.convert.tensors import Index, TensorInfo, dtype_name, full_index, owned
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line

_TREE, _INDICATOR, _STATE = "_METADATA", "orbax.checkpoint", "state"
_MOST_TREE_BYTES = 64 << 20
# Chunks may be compressed, and those of zeros alone may be missing.
_MOST_TIMES, _SPARE_BYTES = 1000, 512 << 20
# The most bytes of one file of an array; a row of a large matrix may have more.
_CHUNK_BYTES = 64 << 20


class OrbaxReader:
    """A `TensorReader` of a checkpoint of orbax; names are those of its tree, joined by dots.

    Args:
        path: the folder of the checkpoint, or of a tree in it.

    Raises:
        ConversionError: it is damaged, or no checkpoint.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        self.notes: Sequence[str] = ()
        tree = _tree_folder(path)
        stored = check_folder(tree)
        try:
            if (tree / _TREE).stat().st_size > _MOST_TREE_BYTES:
                raise ValueError(f"{_TREE} is larger than {_MOST_TREE_BYTES:,} bytes")
            content = json.loads((tree / _TREE).read_bytes(), object_pairs_hook=unique)
            names = [".".join(map(str, ast.literal_eval(key))) for key in content["tree_metadata"]]
            self._arrays = _open(tree, names, content)
            self.infos: Mapping[str, TensorInfo] = {
                k: TensorInfo(dtype_name(v.dtype.numpy_dtype), tuple(v.shape))
                for k, v in self._arrays.items()
            }
        except Exception as e:  # tensorstore raises untyped errors
            raise ConversionError(
                f"{path} is not a readable orbax checkpoint: {printable(first_line(e), 300)}"
            ) from None
        check_names_of_file(self.infos, path)
        logical = sum(math.prod(i.shape) * i.numpy.itemsize for i in self.infos.values())
        check_total(stored, logical, path, _MOST_TIMES, _SPARE_BYTES)
        self._plain = {k: p for k in names if (p := _plain_chunks(tree / k)) is not None}
        self._cached: tuple[str, np.ndarray] | None = None

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it; of compressed chunks, each as a whole."""
        return owned(self.view(name, index))

    def view(self, name: str, index: Index = ()) -> np.ndarray:
        """As `read`; the part of one plain chunk is a view of the mapped file."""
        index = full_index(index, self.infos[name].shape)
        if 0 in self.infos[name].shape:
            return np.empty([s.stop - s.start for s in index], self.infos[name].numpy)
        try:
            if name in self._plain:
                return self._plain[name].view(index, self.infos[name])
            array = self._arrays[name]
            if _is_aligned(index, array.chunk_layout.read_chunk.shape or (), array.shape):
                return array[index].read().result()
            # Else every part of a chunk would decompress it anew.
            if self._cached is None or self._cached[0] != name:
                self._cached = None
                self._cached = name, array.read().result()
            return self._cached[1][index]
        except Exception as e:
            raise ConversionError(f"{self.path}: {name} could not be read: {first_line(e)[:300]}") from None

    def close(self) -> None:
        """Release the arrays."""
        self._cached = None
        self._arrays = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _PlainChunks:
    """An array of zarr without compression, whose chunks are mapped."""

    def __init__(self, folder: Path, chunk: tuple[int, ...], separator: str) -> None:
        self._folder, self._chunk, self._separator = folder, chunk, separator

    def view(self, index: Index, info: TensorInfo) -> np.ndarray:
        """A part of the array: a view, if one chunk holds it."""
        bounds = list(zip(index, self._chunk, strict=True))
        positions = list(itertools.product(*(range(s.start // c, -(-s.stop // c)) for s, c in bounds)))
        if len(positions) == 1:
            (position,) = positions
            inner = (
                slice(s.start - p * c, s.stop - p * c) for p, (s, c) in zip(position, bounds, strict=True)
            )
            return self._mapped(position, info)[tuple(inner)]
        result = np.empty([s.stop - s.start for s in index], info.numpy)
        for position in positions:
            source, target = [], []
            for p, (s, c) in zip(position, bounds, strict=True):
                start, stop = max(s.start, p * c), min(s.stop, (p + 1) * c)
                source.append(slice(start - p * c, stop - p * c))
                target.append(slice(start - s.start, stop - s.start))
            result[tuple(target)] = self._mapped(position, info)[tuple(source)]
        return result

    def _mapped(self, position: tuple[int, ...], info: TensorInfo) -> np.ndarray:
        file = self._folder / (self._separator.join(map(str, position)) or "0")
        return np.memmap(file, np.uint8, "r").view(info.numpy).reshape(self._chunk)


def orbax_places(
    infos: Mapping[str, TensorInfo],
    folder: str,
    *,
    texts: Mapping[str, str] | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
) -> Places:
    """Where the bytes of a checkpoint go, which orbax reads as a flat dictionary of arrays.

    Args:
        folder: the name of orbax's own folder in the target.
        texts: further files of the target.

    Raises:
        ConversionError: a name cannot be that of a folder, or orbax has no such dtype.
    """
    check_folder_names(infos)
    segments: dict[str, list[Segment]] = {}
    sizes: dict[str, int] = {}
    files = {
        **(texts or {}),
        f"{folder}/{_INDICATOR}": "",
        f"{folder}/_CHECKPOINT_METADATA": json.dumps(_CHECKPOINT_METADATA),
        f"{folder}/{_STATE}/{_TREE}": json.dumps(_tree_metadata(infos)),
    }
    for name, info in infos.items():
        place = f"{folder}/{_STATE}/{name}"
        chunk, bounds = chunk_of(info, chunk_bytes), []
        for position in itertools.product(
            *(range(-(-n // c)) for n, c in zip(info.shape, chunk, strict=True))
        ):
            file = f"{place}/{'.'.join(map(str, position)) or '0'}"
            rows = [min(c, n - p * c) for p, c, n in zip(position, chunk, info.shape, strict=True)]
            bounds.append(Segment(file, 0, int(np.prod(rows, dtype=np.int64)) * info.numpy.itemsize))
            sizes[file] = int(np.prod(chunk, dtype=np.int64)) * info.numpy.itemsize
        segments[name] = bounds
        files[f"{place}/.zarray"] = json.dumps(
            {
                "zarr_format": 2,
                "shape": list(info.shape),
                "chunks": list(chunk),
                "dtype": _zarr_dtype(name, info),
                "compressor": None,
                "filters": None,
                "fill_value": None,
                "order": "C",
                "dimension_separator": ".",
            }
        )
    return Places(segments, sizes, partial(_prepare, sizes), files)


def check_folder_names(names: Sequence[str] | Mapping[str, Any]) -> None:
    """Check that each name can be a folder of its own below one folder.

    Raises:
        ConversionError: one cannot.
    """
    known = set(names)
    for name in names:
        parts = name.split("/")
        bad = any(p in ("", ".", "..") or len(p.encode()) > 255 or "\0" in p for p in parts)
        if bad or any("/".join(parts[:i]) in known for i in range(1, len(parts))):
            raise ConversionError(f"{name[:100]!r} cannot be the name of an array in an orbax checkpoint")


def chunk_of(info: TensorInfo, limit: int) -> tuple[int, ...]:
    """The shape of an array's chunks: runs of its bytes in C order, of at most `limit` bytes or one element."""
    chunk = [max(1, n) for n in info.shape]
    for axis in range(len(chunk)):
        row = int(np.prod(chunk[axis + 1 :], dtype=np.int64)) * info.numpy.itemsize
        if chunk[axis] * row <= limit:
            break
        chunk[axis] = max(1, limit // row)
        if chunk[axis] > 1:
            break
    return tuple(chunk)


def _prepare(sizes: Mapping[str, int], folder: Path) -> None:
    for file, size in sizes.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as handle:
            handle.truncate(size)


def is_orbax(path: Path) -> bool:
    """Whether a folder is a checkpoint of orbax, or holds one."""
    return (path / _TREE).is_file() or any(path.glob(f"*/{_TREE}"))


def _tree_folder(path: Path) -> Path:
    """The folder with orbax's description of a tree: the path, or the one folder in it that has one."""
    if (path / _TREE).is_file():
        return path
    trees = [p.parent for p in sorted(path.glob(f"*/{_TREE}"))] if path.is_dir() else []
    if len(trees) != 1:
        raise ConversionError(f"{path} holds {len(trees)} orbax checkpoints of arrays, not one")
    return trees[0]


def _open(tree: Path, names: Sequence[str], content: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a tree, opened by tensorstore; their bytes are not read."""
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    base = {"driver": "ocdbt", "base": f"file://{tree.absolute()}/"} if content["use_ocdbt"] else None
    driver = "zarr3" if content.get("use_zarr3") else "zarr"

    def spec(name: str) -> dict[str, Any]:
        kvstore = (
            {**base, "path": f"{name}/"} if base else {"driver": "file", "path": f"{tree.absolute()}/{name}/"}
        )
        return {"driver": driver, "kvstore": kvstore}

    opened = {k: tensorstore.open(spec(k), open=True, read=True, context=context) for k in names}
    return {k: v.result() for k, v in opened.items()}


def _plain_chunks(folder: Path) -> _PlainChunks | None:
    """The chunks of an array, if they are plain bytes in C order."""
    try:
        content = json.loads((folder / ".zarray").read_bytes())
    except (OSError, ValueError):
        return None
    if content["compressor"] or content["filters"] or content["order"] != "C" or content["dtype"][0] == ">":
        return None
    return _PlainChunks(folder, tuple(content["chunks"]), content.get("dimension_separator", "."))


def _is_aligned(index: Index, chunk: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether an index takes whole chunks."""
    return all(
        s.start % c == 0 and (s.stop % c == 0 or s.stop == n)
        for s, c, n in zip(index, chunk, shape, strict=False)
    )


def _zarr_dtype(name: str, info: TensorInfo) -> str:
    dtype = info.numpy
    if dtype.kind in "biufc":
        return dtype.str
    if dtype.type.__module__ == ml_dtypes.__name__ and dtype.itemsize * 8 == info.nbits:
        return dtype.name
    raise ConversionError(f"{name!r} is {info.dtype}, which orbax cannot store")


def _tree_metadata(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    value = {"value_type": "np.ndarray", "skip_deserialize": False}
    tree = {str((k,)): {"key_metadata": [{"key": k, "key_type": 2}], "value_metadata": value} for k in infos}
    return {
        "tree_metadata": tree,
        "use_ocdbt": False,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }


_CHECKPOINT_METADATA = {
    "item_handlers": {_STATE: "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"},
    "metrics": {},
    "performance_metrics": {},
    "init_timestamp_nsecs": 0,
    "commit_timestamp_nsecs": 1,
    "custom_metadata": {},
}
