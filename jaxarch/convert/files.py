"""Weight files by the kind that their names say: readers, writers, and whole dictionaries of arrays."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxarch.convert import dcp_folder, msgpack_file, npz_file, peft_folder
from jaxarch.convert.dcp_folder import DcpReader
from jaxarch.convert.manifest import Manifest, read_manifest
from jaxarch.convert.msgpack_file import MsgpackReader
from jaxarch.convert.npz_file import NpzReader, NpzWriter
from jaxarch.convert.orbax import OrbaxReader, is_orbax
from jaxarch.convert.peft_folder import PeftReader
from jaxarch.convert.safetensors_file import INDEX, SafetensorsReader, safetensors_places
from jaxarch.convert.shards import JoinedReader, VerifiedReader, shards_of
from jaxarch.convert.store import StoreWriter
from jaxarch.convert.tensors import TensorInfo, TensorReader, TensorWriter
from jaxarch.convert.torch_file import TorchWriter
from jaxarch.convert.torch_places import torch_places
from jaxarch.convert.torch_reader import TorchReader
from jaxarch.errors import ConversionError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# Kinds of files that are read; all but .msgpack are written.
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, npz_file.SUFFIX, msgpack_file.SUFFIX)
# Torch takes two seconds to lay out a file that is streamed; what is smaller is held in memory.
_HELD_BYTES = 64 << 20
# What a folder is read from: the first of these that it has.
ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a weight file by name, bit for bit.

    Raises:
        ConversionError: the file is missing, damaged, of an unknown kind, or holds something else than a
            state_dict of tensors.

    Example:
        >>> weights = read_tensors("model.pt")
        >>> weights["fc.weight"].shape
        (10, 512)
    """
    with open_tensors(path) as reader:
        return {name: reader.read(name) for name in reader.infos}


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    shard_bytes: int | None = None,
) -> None:
    """Write tensors to a weight file; the file appears whole or not at all.

    Args:
        metadata: texts that safetensors keeps beside the tensors.
        shard_bytes: the most bytes of one file; larger weights become several files with an index.

    Raises:
        ConversionError: unknown kind of file, or the file could not be written.

    Example:
        >>> write_tensors("model.safetensors", weights, {"step": "100"}, shard_bytes=5 * 10**9)
    """
    infos = {k: TensorInfo.of(v) for k, v in tensors.items()}
    with create_tensors(path, infos, metadata, shard_bytes=shard_bytes) as writer:
        for name, value in tensors.items():
            writer.write(name, value)
        writer.finish()


def open_tensors(path: str | os.PathLike, part: str | None = None) -> TensorReader:
    """A reader of a weight file, of the index of its shards, or of a folder with either.

    A folder may be one of torch.distributed.checkpoint, of peft or of orbax, too.

    What has a manifest beside it is compared with it.

    Args:
        part: of a file with several sets of weights, the one to take, such as "ema"; default: the model's own.

    Raises:
        ConversionError: as `read_tensors`; or there is no such part.

    Example:
        >>> with open_tensors("model.safetensors.index.json") as reader:
        ...     rows = reader.read("fc.weight", (slice(0, 2),))  # only these are read
    """
    path = Path(path)
    if (path / dcp_folder.METADATA).is_file():
        return DcpReader(path, part)
    if (path / peft_folder.CONFIG).is_file():
        return PeftReader(path, open_tensors)
    if path.is_dir() and is_orbax(path):
        return OrbaxReader(path)
    entry = _entry(path)
    if not entry.is_file():
        raise ConversionError(f"{entry}: no such file")
    reader = _joined(entry) if entry.name.endswith(INDEX) else _single(entry, part)
    try:
        manifest = manifest_of(path)
        return reader if manifest is None else VerifiedReader(reader, manifest, entry)
    except ConversionError:
        reader.close()
        raise


def manifest_of(path: Path) -> Manifest | None:
    """The hashes that were recorded as a file, shards or a folder of them were written, if there are any.

    Raises:
        ConversionError: they are damaged, or a folder holds no weights.
    """
    entry = _entry(path)
    places = [entry.with_name(entry.name.removesuffix(INDEX)), *([path] if path.is_dir() else [])]
    return next((m for p in places if (m := read_manifest(p)) is not None), None)


def holds_tensors(folder: Path) -> bool:
    """Whether a folder is of a kind that `open_tensors` reads."""
    names = (*ENTRIES, dcp_folder.METADATA, peft_folder.CONFIG)
    return folder.is_dir() and (any((folder / n).is_file() for n in names) or is_orbax(folder))


def create_tensors(
    path: str | os.PathLike,
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str] | None = None,
    *,
    shard_bytes: int | None = None,
    fingerprint: str | None = None,
) -> TensorWriter:
    """A writer of a weight file for tensors that are known by dtype and shape.

    Args:
        infos: what will be written.
        metadata, shard_bytes: as `write_tensors`.
        fingerprint: names the content, down to the bytes; a write of it that was killed is continued.

    Raises:
        ConversionError: unknown kind of file, no room for it, or another process is writing it.
        UsageError: a torch file without torch installed.

    Example:
        >>> with create_tensors("half.safetensors", {"a": TensorInfo("F32", (1000, 4))}) as writer:
        ...     for block in blocks:  # of rows, in order
        ...         writer.write("a", block)
        ...     writer.finish()
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        places = safetensors_places(path.name, infos, metadata or {}, shard_bytes=shard_bytes)
        return StoreWriter(path, infos, places, fingerprint=fingerprint)
    if path.suffix in TORCH_SUFFIXES and sum(i.nbytes for i in infos.values()) < _HELD_BYTES:
        return TorchWriter(path, infos)
    if path.suffix in TORCH_SUFFIXES:
        return StoreWriter(path, infos, torch_places(path, infos), fingerprint=fingerprint)
    if path.suffix == npz_file.SUFFIX:
        return NpzWriter(path, infos, metadata)
    raise _unknown_suffix(path)


def _entry(path: Path) -> Path:
    """The file that is opened of a path: of a folder, the first that is known."""
    if not path.is_dir():
        return path
    entries = [path / name for name in ENTRIES if (path / name).is_file()]
    if not entries:
        raise ConversionError(f"{path} holds no weights; known: {', '.join(ENTRIES)}")
    return entries[0]


def _single(path: Path, part: str | None = None) -> TensorReader:
    if part is not None and path.suffix not in (*TORCH_SUFFIXES, msgpack_file.SUFFIX):
        raise ConversionError(f"{path} has no parts, such as {part!r}")
    if path.suffix == ".safetensors":
        return SafetensorsReader(path)
    if path.suffix in TORCH_SUFFIXES:
        return TorchReader(path, part)
    if path.suffix == npz_file.SUFFIX:
        return NpzReader(path)
    if path.suffix == msgpack_file.SUFFIX:
        return MsgpackReader(path, part)
    raise _unknown_suffix(path)


def _joined(index: Path) -> TensorReader:
    """The shards of an index, which must agree with it."""
    readers = []
    for shard, listed in sorted(shards_of(index).items()):
        if not (index.parent / shard).is_file():
            raise ConversionError(f"{index.parent / shard}: no such file")
        readers.append(_single(index.parent / shard))
        if differing := sorted(listed ^ set(readers[-1].infos)):
            raise ConversionError(f"{index.parent / shard} and {index.name} disagree about {differing[0]}")
    return JoinedReader(readers)


def _unknown_suffix(path: Path) -> ConversionError:
    return ConversionError(f"{path}: unknown kind of file; known: {', '.join(SUFFIXES)}")
