"""Files of torch by torch itself: what a state_dict is written with, and what is read that is none."""

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert.manifest import Manifest, changed, hash_of, sidecar
from jaxarch.convert.tensors import TensorInfo
from jaxarch.convert.torch_reader import check_torch_file
from jaxarch.errors import ConversionError, require_torch
from jaxarch.files import first_line, locked, remove, write_text, write_whole


class TorchWriter:
    """A `TensorWriter` that holds all tensors until it writes them."""

    def __init__(self, path: Path, infos: Mapping[str, TensorInfo]) -> None:
        self._torch = require_torch(f"writing {path.name}")
        self.path, self.infos = path, infos
        self._parts: dict[str, list[np.ndarray]] = {k: [] for k in infos}

    def write(self, name: str, value: np.ndarray) -> None:
        """Append a tensor, or the next part of it in C order."""
        self._parts[name].append(value)

    def finish(self) -> None:
        """Write the file."""
        content = {}
        for name, parts in self._parts.items():
            if sum(p.size for p in parts) != math.prod(self.infos[name].shape) or not parts:
                raise ConversionError(f"{self.path}: {name!r} was not written")
            whole = parts[0] if len(parts) == 1 else np.concatenate([p.reshape(-1) for p in parts])
            content[name] = as_tensor(whole.reshape(self.infos[name].shape))
        written = {k: (i, hash_of(self._parts[k])) for k, i in self.infos.items()}

        def save(temporary: str) -> None:
            self._torch.save(content, temporary)
            for name, tensor in load_torch_file(Path(temporary)).items():
                if hash_of([as_numpy(tensor)]) != written[name][1]:
                    raise changed(self.path, f"{name!r} was not read back as it was written: check the disk")

        with locked(self.path):
            remove(sidecar(self.path))
            write_whole(self.path, save)
            write_text(sidecar(self.path), Manifest(written).dump())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._parts = {}


def load_torch_file(path: Path, kind: str = "weight", *, mmap: bool = False) -> Any:
    """What torch has saved in a file, on the CPU; `kind` of file is for the error message.

    Args:
        mmap: map the file instead of reading it; a file of torch before 1.6 is read all the same.

    Raises:
        ConversionError: the file is damaged, or loading it would run code from it.
        UsageError: torch is not installed.
    """
    torch = require_torch(f"reading {path.name}")
    check_torch_file(path)
    try:
        mmap = mmap and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        # torch's own text recommends weights_only=False, which would run code from the file.
        has_reason = isinstance(e, (RuntimeError, OSError))
        reason = first_line(e) if has_reason else "it is damaged or holds more than tensors"
        raise ConversionError(f"{path} is not a readable torch {kind} file: {reason}") from None
