"""Tensors that are spread over several files, and readers that verify what they read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from jaxarch.convert.manifest import Manifest
from jaxarch.convert.tensors import Index, TensorInfo, TensorReader, tensors_of
from jaxarch.errors import ConversionError, printable


class JoinedReader:
    """Several readers as one; no two may have a name in common."""

    def __init__(self, readers: Sequence[TensorReader]) -> None:
        self._readers = readers
        self._owners = {name: reader for reader in readers for name in reader.infos}
        self.metadata: Mapping[str, str] = {k: v for r in readers for k, v in r.metadata.items()}
        self.infos: Mapping[str, TensorInfo] = {k: r.infos[k] for k, r in self._owners.items()}
        self.notes = [note for r in readers for note in r.notes]

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it."""
        return self._owners[name].read(name, index)

    def view(self, name: str, index: Index = ()) -> np.ndarray:
        """As `read`, or a view of a mapped file."""
        owner = self._owners[name]
        return getattr(owner, "view", owner.read)(name, index)

    def close(self) -> None:
        """Close all of them."""
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class VerifiedReader:
    """A reader whose tensors are compared with their manifest, each as a whole before its first part is read.

    Raises:
        ConversionError: names, dtypes or shapes differ from the manifest.
    """

    def __init__(self, reader: TensorReader, manifest: Manifest, path: Path) -> None:
        manifest.check_infos(reader.infos, path)
        self._reader, self._manifest, self._path = reader, manifest, path
        self._tensors = tensors_of(reader)
        self._verified: set[str] = set()
        self.metadata, self.infos, self.notes = reader.metadata, reader.infos, reader.notes

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it.

        Raises:
            ConversionError: its bytes are not those that were written.
        """
        self._verify(name)
        return self._reader.read(name, index)

    def view(self, name: str, index: Index = ()) -> np.ndarray:
        """As `read`, or a view of a mapped file."""
        self._verify(name)
        return getattr(self._reader, "view", self._reader.read)(name, index)

    def verify(self) -> None:
        """Compare all tensors that were not read yet.

        Raises:
            ConversionError: the bytes of one are not those that were written.
        """
        for name in self.infos:
            self._verify(name)

    def _verify(self, name: str) -> None:
        if name not in self._verified:
            self._manifest.check(name, self._tensors[name], self._path)
            self._verified.add(name)

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def shards_of(index: Path) -> dict[str, set[str]]:
    """The files that an index names, by their bare names, each with the tensors it should hold.

    Raises:
        ConversionError: the index is damaged, or names a file elsewhere.
    """
    try:
        weight_map = json.loads(index.read_bytes()).get("weight_map")
    except (OSError, ValueError, RecursionError, AttributeError) as e:
        raise ConversionError(f"{index} is not an index of shards: {str(e)[:200]}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index} has no weight_map")
    kind = Path(index.name.removesuffix(".index.json")).suffix
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or len(shard) > 255
            or Path(shard).name != shard
            or "\\" in shard
            or not shard.endswith(kind)
        ):
            raise ConversionError(
                f"{index} names {printable(repr(shard))}: a shard must be a {kind} file beside it"
            )
        shards.setdefault(shard, set()).add(name)
    return shards
