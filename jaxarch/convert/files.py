"""Weight files: safetensors, torch, and folders written by training.

No file is trusted: torch files are read with `weights_only`, safetensors headers are checked by that
library before anything is allocated. A file is written beside its place and moved there when complete.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
import safetensors
from safetensors import numpy as safe

from jaxarch.convert.state_dict import as_numpy, as_tensor
from jaxarch.errors import ConversionError, require_torch

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
            raise ConversionError(f"{path} is not a readable safetensors file: {_line(e)}") from None
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise _unknown_kind(path)


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a .safetensors, .pt, .pth or .bin file; the file appears whole or not at all.

    Raises:
        ConversionError: unknown kind of file, or the disk refused.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        plain = {k: np.asarray(v, order="C") for k, v in tensors.items()}
        write_whole(path, lambda temporary: safe.save_file(plain, temporary, metadata={"format": "pt"}))
    elif path.suffix in TORCH_SUFFIXES:
        torch = require_torch(f"writing {path.name}")
        content = {k: as_tensor(v) for k, v in tensors.items()}
        write_whole(path, lambda temporary: torch.save(content, temporary))
    else:
        raise _unknown_kind(path)


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then move the result to `path`.

    Raises:
        ConversionError: the disk refused; `path` is as it was and no temporary file is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as e:
        raise ConversionError(f"{path} could not be written: {_line(e)}") from None
    try:
        write(temporary)
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as e:
        raise ConversionError(f"{path} could not be written: {_line(e)}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    import pickle

    torch = require_torch(f"reading {path.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        # torch's own text recommends weights_only=False, which would run code from the file.
        told = isinstance(e, (RuntimeError, OSError))
        reason = _line(e) if told else "it is damaged or holds more than tensors"
        raise ConversionError(f"{path} is not a readable torch weight file: {reason}") from None
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not a state_dict")
    if other := [k for k, v in content.items() if not isinstance(v, torch.Tensor)]:
        raise ConversionError(f"{path}: {other[0]!r} is not a tensor; save model.state_dict() alone")
    return {k: as_numpy(v) for k, v in content.items()}


def _unknown_kind(path: Path) -> ConversionError:
    return ConversionError(f"{path}: unknown kind of file; known: .safetensors, {', '.join(TORCH_SUFFIXES)}")


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
