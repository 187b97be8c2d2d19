"""Folders in the format of the Hugging Face Hub: config.json beside safetensors or torch weights, maybe sharded.

The page whose class has the name that config.json gives under "architectures" is the model. Names of tensors are
those on disk. Nothing in a folder is trusted: an index names files beside it, by their bare names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxarch.convert import hub_names
from jaxarch.convert.carried import Carried, carry, survey
from jaxarch.convert.casting import FLOATS
from jaxarch.convert.files import open_tensors
from jaxarch.convert.hub_config import (
    CODE_KEYS,
    CONFIG,
    check_sizes,
    config_class,
    config_text,
    read_config,
)
from jaxarch.convert.safetensors_file import safetensors_places
from jaxarch.convert.store import StoreWriter
from jaxarch.convert.tensors import Tensor, TensorInfo, TensorReader, TensorWriter, tensors_of
from jaxarch.errors import ConversionError

PREFIX = "hf:"
SINGLE = "model.safetensors"
# Above this Hugging Face's tools write shards.
SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class HubFolder:
    """The contents of a folder: the architecture and its arguments, the whole config.json, the tensors on disk.

    A context manager, which closes the weights.

    Attributes:
        carried: what lies beside the weights.
    """

    path: Path
    name: str
    arguments: dict[str, Any]
    config: dict[str, Any]
    reader: TensorReader
    carried: Carried

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names on disk; none is loaded."""
        return tensors_of(self.reader)

    def fitted(self, needed: set[str]) -> hub_names.Fitted:
        """The tensors under the names of a model that needs `needed`.

        Raises:
            ConversionError: two tensors claim one name, or a tied tensor differs from its original.
        """
        cls = config_class(self.name)
        kind = cls.model_type
        base = getattr(cls, "base_model_prefix", kind)
        return hub_names.fit(
            self.tensors, needed, kind=kind, base=base, metadata=self.reader.metadata, where=self.path
        )

    def close(self) -> None:
        """Close the weights."""
        self.reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def code_keys(self) -> list[str]:
        """The keys of config.json that name code; they are not kept."""
        return [k for k in CODE_KEYS if k in self.config]


def read_hub(path: str | Path, model: str | None = None) -> HubFolder:
    """Read a folder in the format of the Hugging Face Hub; its tensors are not loaded.

    Args:
        model: an architecture of the catalog to take instead of the one that config.json names.

    Raises:
        ConversionError: the folder or a file is missing or damaged, or config.json asks for what is not implemented.
        UsageError: `model` is not on the Hub.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConversionError(f"{path}: no such folder; hf:ORG/NAME@REVISION downloads one from the Hub")
    name, arguments, config = read_config(path, model)
    reader = open_tensors(path)
    try:
        count = sum(math.prod(i.shape) for i in reader.infos.values())
        check_sizes(arguments, reader.infos, count, path)
    except ConversionError:
        reader.close()
        raise
    return HubFolder(path, name, arguments, config, reader, survey(path))


def create_hub(
    path: str | Path,
    name: str,
    arguments: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    extra: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    beside: tuple[Path, Mapping[str, str]] | None = None,
    shard_bytes: int | None = SHARD_BYTES,
    fingerprint: str | None = None,
) -> TensorWriter:
    """A writer of a folder that `transformers` reads: config.json and safetensors, in shards if they are large.

    Args:
        arguments: every argument of the architecture.
        infos: what will be written.
        extra: settings of another config.json to keep, such as the names of labels.
        metadata: texts that safetensors keeps beside the tensors.
        beside: a folder, and its files to carry along (`carried.Carried.files`).
        shard_bytes: the most bytes of one file.
        fingerprint: as `files.create_tensors`.

    Raises:
        UsageError: the architecture is not on the Hub.
        ConversionError: no room, another process is writing the folder, or a file to carry has changed.
    """
    floats = [i for i in infos.values() if i.dtype in FLOATS]
    config = config_text(name, arguments, str(floats[0].numpy) if floats else None, extra)
    places = safetensors_places(
        SINGLE, infos, metadata or {}, shard_bytes=shard_bytes, is_folder=True, texts={CONFIG: config}
    )

    def prepare(folder: Path) -> None:
        places.prepare(folder)
        if beside is not None:
            carry(beside[0], folder, beside[1])

    return StoreWriter(Path(path), infos, replace(places, prepare=prepare), fingerprint=fingerprint)


def write_hub(
    path: str | Path,
    name: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    extra: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int | None = SHARD_BYTES,
) -> None:
    """Write tensors in memory as a folder that `transformers` reads; arguments as `create_hub`.

    Raises:
        UsageError: the architecture is not on the Hub.
        ConversionError: the folder exists, or a file could not be written.
    """
    if Path(path).exists():
        raise ConversionError(f"{path} exists: choose a new folder")
    infos = {k: TensorInfo.of(v) for k, v in tensors.items()}
    with create_hub(path, name, arguments, infos, extra, shard_bytes=shard_bytes) as writer:
        for key, value in tensors.items():
            writer.write(key, value)
        writer.finish()
