"""Files of safetensors, alone or as shards with an index: read by slices from a mapped file, written in place."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors

from jaxarch.arrays import SUB_BYTE, unpack
from jaxarch.convert.dtypes import safetensors_dtype
from jaxarch.convert.limits import check_names_of_file, check_shape, unique
from jaxarch.convert.store import Places, Segment
from jaxarch.convert.tensors import Index, TensorInfo, full_index, owned
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line, open_regular

INDEX = ".index.json"
# That of 200,000 tensors; JSON takes ten times its length in memory.
MOST_HEADER_BYTES = 32 << 20


class SafetensorsReader:
    """A `TensorReader` of one file.

    Raises:
        ConversionError: the file is damaged.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                size = int.from_bytes(file.read(8), "little")
                if size > MOST_HEADER_BYTES:
                    raise ValueError(f"its header has {size:,} bytes, at most {MOST_HEADER_BYTES:,} are read")
                text = file.read(size)
            with safetensors.safe_open(path, "numpy"):  # checks sizes, offsets and overlaps
                pass
            header = json.loads(text, object_pairs_hook=unique)
            self._bytes = np.memmap(path, np.uint8, "r", offset=0)[8 + size :]
        except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as e:
            raise ConversionError(
                f"{path} is not a readable safetensors file: {printable(first_line(e))}"
            ) from None
        self.metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        self._spans = {k: tuple(v["data_offsets"]) for k, v in header.items()}
        self.infos: Mapping[str, TensorInfo] = {
            k: TensorInfo(v["dtype"], check_shape(v["shape"], k, path)) for k, v in header.items()
        }
        check_names_of_file(self.infos, path)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it; only the pages of that part are read."""
        return owned(self.view(name, index))

    def view(self, name: str, index: Index = ()) -> np.ndarray:
        """A part of the mapped file."""
        info, (start, stop) = self.infos[name], self._spans[name]
        stored = self._bytes[start:stop]
        if info.numpy in SUB_BYTE:
            whole = unpack(np.asarray(stored), info.numpy, info.shape)
        else:
            whole = stored.view(info.numpy).reshape(info.shape)
        return whole[full_index(index, info.shape)]

    def close(self) -> None:
        """Release the mapping."""
        self._bytes = np.empty(0, np.uint8)  # type: ignore[assignment]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def safetensors_places(
    entry: str,
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    *,
    shard_bytes: int | None = None,
    is_folder: bool = False,
    texts: Mapping[str, str] | None = None,
) -> Places:
    """Where the bytes of tensors go: into one file, or with `shard_bytes` into several with an index.

    Args:
        entry: the name of the file without shards, such as "model.safetensors".
        is_folder: the target is a folder that holds the files, and not the file itself.
        texts: further files of the folder.
    """
    shards = _shards(infos, shard_bytes)
    stem, texts = entry.removesuffix(".safetensors"), dict(texts or {})
    names = (
        [entry]
        if len(shards) == 1
        else [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    segments: dict[str, list[Segment]] = {}
    headers: dict[str, tuple[bytes, int]] = {}
    for file, shard in zip(names, shards, strict=True):
        header, offsets, size = _header({k: infos[k] for k in shard}, metadata)
        headers[file] = header, size
        for k in shard:
            segments[k] = [Segment(file, offsets[k], infos[k].nbytes)]
    if len(shards) > 1:
        total = sum(i.nbytes for i in infos.values())
        weight_map = {k: file for file, shard in zip(names, shards, strict=True) for k in shard}
        texts[entry + INDEX] = _json({"metadata": {"total_size": total}, "weight_map": weight_map})
    return Places(
        segments,
        {file: size for file, (_, size) in headers.items()},
        partial(_prepare, headers),
        texts,
        None if is_folder else entry if len(shards) == 1 else entry + INDEX,
    )


def _prepare(headers: Mapping[str, tuple[bytes, int]], folder: Path) -> None:
    for file, (header, size) in headers.items():
        with open(folder / file, "wb") as handle:
            handle.write(header)
            os.truncate(handle.fileno(), size)


def _header(
    infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """The header of a file, the offset in the file of each tensor, and the size of the file.

    As that library does, wide dtypes come first, so that every tensor is aligned.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offsets, position = {}, 0
    for k in sorted(infos, key=lambda k: (-infos[k].numpy.itemsize, k)):
        safetensors_dtype(infos[k].dtype)
        stop = position + infos[k].nbytes
        content[k] = {"dtype": infos[k].dtype, "shape": infos[k].shape, "data_offsets": [position, stop]}
        offsets[k], position = position, stop
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return (
        len(text).to_bytes(8, "little") + text,
        {k: start + v for k, v in offsets.items()},
        start + position,
    )


def _shards(infos: Mapping[str, TensorInfo], limit: int | None) -> list[list[str]]:
    """The names in order, in groups of at most `limit` bytes or one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in infos.items():
        if limit is not None and shards[-1] and size + info.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.nbytes
    return shards


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
