"""Weight files: safetensors and torch.

No file is trusted: torch files are read with `weights_only`, safetensors headers are checked by that
library before anything is allocated.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
import safetensors
from safetensors import numpy as safe

from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.errors import ConversionError, require_torch
from jaxarch.files import first_line, write_whole

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model_state_dict")


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors, .pt, .pth or .bin file by name, bit for bit.

    Raises:
        ConversionError: the file is missing, damaged, of an unknown kind, or holds something else than a
            flat state_dict of tensors.
        UsageError: a torch file without torch installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return safe.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            raise ConversionError(f"{path} is not a readable safetensors file: {first_line(e)}") from None
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise _unknown_suffix(path)


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a .safetensors, .pt, .pth or .bin file; the file appears whole or not at all.

    Raises:
        ConversionError: unknown kind of file, or the file could not be written.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        plain = {k: np.asarray(v, order="C") for k, v in tensors.items()}
        write_whole(path, lambda temporary: _save(plain, temporary))
    elif path.suffix in TORCH_SUFFIXES:
        torch = require_torch(f"writing {path.name}")
        content = {k: as_tensor(v) for k, v in tensors.items()}
        write_whole(path, lambda temporary: torch.save(content, temporary))
    else:
        raise _unknown_suffix(path)


def load_torch_file(path: Path, kind: str = "weight") -> Any:
    """What torch has saved in a file, on the CPU; `kind` of file is for the error message.

    Raises:
        ConversionError: the file is damaged, or loading it would run code from it.
        UsageError: torch is not installed.
    """
    import pickle

    torch = require_torch(f"reading {path.name}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        # torch's own text recommends weights_only=False, which would run code from the file.
        has_reason = isinstance(e, (RuntimeError, OSError))
        reason = first_line(e) if has_reason else "it is damaged or holds more than tensors"
        raise ConversionError(f"{path} is not a readable torch {kind} file: {reason}") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = require_torch(f"reading {path.name}")
    content = load_torch_file(path)
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a state_dict")
    if others := [k for k, v in content.items() if not isinstance(v, torch.Tensor)]:
        raise ConversionError(f"{path}: {others[0]!r} is not a tensor; save model.state_dict() alone")
    return {k: as_numpy(v) for k, v in content.items()}


def _unknown_suffix(path: Path) -> ConversionError:
    return ConversionError(f"{path}: unknown kind of file; known: .safetensors, {', '.join(TORCH_SUFFIXES)}")


def _save(tensors: Mapping[str, np.ndarray], path: str) -> None:
    try:
        safe.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:  # how that library reports a full disk
        raise OSError(first_line(e)) from None
