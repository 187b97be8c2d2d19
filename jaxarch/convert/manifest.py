"""What tensors should be: a hash for each, in a file beside them that covers itself.

The hash is XXH3-128 of the tensor's bytes in C order, little-endian, taken of what was meant to be written. It finds
damage and edits by mistake; it is no signature.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import xxhash

from jaxarch.convert.tensors import Tensor, TensorInfo, raw_bytes
from jaxarch.errors import ConversionError
from jaxarch.files import open_regular

SUFFIX, FOLDER_NAME = ".checksums.json", "checksums.json"
_MOST_BYTES = 256 << 20
_ALGORITHM, _FORMAT = "xxh3_128", 2
Hasher = xxhash.xxh3_128


@dataclass(frozen=True)
class Manifest:
    """The tensors of a file or folder with their hashes, and the hashes of the texts beside them."""

    tensors: Mapping[str, tuple[TensorInfo, str]]
    texts: Mapping[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """The manifest as JSON, with a hash of itself."""
        content = {
            "format": _FORMAT,
            "hash": _ALGORITHM,
            "tensors": {
                k: {"dtype": i.dtype, "shape": list(i.shape), "hash": h} for k, (i, h) in self.tensors.items()
            },
            "texts": dict(self.texts),
        }
        return json.dumps({**content, "self": _hash_of(content)}, indent=1) + "\n"

    @classmethod
    def parse(cls, content: Any, path: Path) -> Self:
        """The manifest of what `json.loads` gave.

        Raises:
            ConversionError: it is damaged, or has been edited.
        """
        damaged = ConversionError(f"{path} is damaged: it does not hash to what it says of itself")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise damaged
        content = dict(content)
        if content.pop("self", None) != _hash_of(content) or content.get("hash") != _ALGORITHM:
            raise damaged
        try:
            tensors = {
                k: (TensorInfo(v["dtype"], tuple(map(int, v["shape"]))), str(v["hash"]))
                for k, v in content["tensors"].items()
            }
            return cls(tensors, dict(content["texts"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise damaged from None

    def check_infos(self, infos: Mapping[str, TensorInfo], path: Path) -> None:
        """Compare what a file holds, by its own header, with what was written.

        Raises:
            ConversionError: names, dtypes or shapes differ.
        """
        for name in sorted(set(self.tensors) | set(infos)):
            written, actual = self.tensors.get(name, (None, ""))[0], infos.get(name)
            if written != actual:
                raise changed(path, f"{name!r} is {_describe(actual)}, {_describe(written)} was written")

    def check(self, name: str, tensor: Tensor, path: Path) -> None:
        """Compare the bytes of a tensor with what was written.

        Raises:
            ConversionError: they differ.
        """
        if hash_of(tensor.blocks()) != self.tensors[name][1]:
            raise changed(path, f"{name!r} has other bytes than were written")

    def check_text(self, name: str, path: Path) -> None:
        """Compare a text beside the tensors with what was written.

        Raises:
            ConversionError: it differs, or is missing.
        """
        try:
            content = path.read_bytes()
        except OSError:
            content = None
        if content is None or Hasher(content).hexdigest() != self.texts.get(name):
            raise changed(path, "it has other bytes than were written")


def changed(path: Path, what: str) -> ConversionError:
    """The error that something has changed since it was written."""
    return ConversionError(f"{path} is damaged or edited: {what}")


def sidecar(path: Path) -> Path:
    """Where the manifest of a file lies, or that of a folder."""
    return path / FOLDER_NAME if path.is_dir() else path.with_name(path.name + SUFFIX)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a file or folder; None where it has none, or an older one of another form.

    Raises:
        ConversionError: it is damaged.
    """
    file = sidecar(path)
    if not os.path.lexists(file):
        return None
    try:
        with open_regular(file) as stream:
            if os.fstat(stream.fileno()).st_size > _MOST_BYTES:
                raise ConversionError(f"{file} is larger than {_MOST_BYTES:,} bytes")
            content = json.loads(stream.read())
    except (OSError, ValueError, RecursionError):
        raise ConversionError(
            f"{file} is damaged: it is not JSON; delete it to read {path.name} unverified"
        ) from None
    if isinstance(content, dict) and set(content) == {"arrays", "files"}:
        return None
    return Manifest.parse(content, file)


def hash_of(blocks: Iterable[Any]) -> str:
    """The hash of arrays, one after the other."""
    hasher = Hasher()
    for block in blocks:
        hasher.update(raw_bytes(block).data)
    return hasher.hexdigest()


def text_hash(text: str) -> str:
    """The hash of a text in UTF-8."""
    return Hasher(text.encode()).hexdigest()


def _hash_of(content: Any) -> str:
    return text_hash(json.dumps(content, sort_keys=True, separators=(",", ":")))


def _describe(info: TensorInfo | None) -> str:
    return "missing" if info is None else f"{info.dtype} {info.shape}"
