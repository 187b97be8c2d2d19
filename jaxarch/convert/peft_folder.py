"""Folders of the peft library: adapters under the paths of the layers they belong to, with their settings."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxarch.convert.tensors import Index, TensorInfo, TensorReader
from jaxarch.errors import ConversionError, printable
from jaxarch.files import open_regular

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
MOST_CONFIG_BYTES = 1 << 20


class PeftReader:
    """A `TensorReader` of one folder; names are without the library's prefix, settings are metadata.

    Args:
        open_file: opens a weight file.

    Raises:
        ConversionError: a file is missing or damaged.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], TensorReader]) -> None:
        settings = _settings(path / CONFIG)
        file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if file is None:
            raise ConversionError(f"{path} has {CONFIG} and no weights; known: {', '.join(WEIGHTS)}")
        self._reader = open_file(file)
        self._names = {k.removeprefix(PREFIX): k for k in self._reader.infos}
        if len(self._names) != len(self._reader.infos):
            self._reader.close()
            raise ConversionError(f"{file} holds a name with and without {PREFIX!r}")
        self.metadata: Mapping[str, str] = {**self._reader.metadata, **settings}
        self.notes = [*self._reader.notes, "these are adapters, without the model they belong to"]
        self.infos: Mapping[str, TensorInfo] = {k: self._reader.infos[v] for k, v in self._names.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it."""
        return self._reader.read(self._names[name], index)

    def close(self) -> None:
        """Close the weight file."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _settings(path: Path) -> dict[str, str]:
    """The settings of the adapters, as texts."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_CONFIG_BYTES:
            raise ConversionError(f"{path} is larger than {MOST_CONFIG_BYTES:,} bytes")
        data = file.read()
    try:
        content: Any = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return {f"peft.{printable(k)}": v if isinstance(v, str) else json.dumps(v) for k, v in content.items()}
