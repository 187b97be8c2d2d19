"""Where the bytes of tensors go in a file of torch: a zip archive without compression, each tensor a record in it.

torch writes the archive with holes in place of the numbers (`torch.serialization.skip_data`) and says where they are;
the checksums that a zip has of its records are filled in at the end.
"""

import os
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxarch.arrays import FLOAT4, FLOAT4_PAIRS
from jaxarch.convert.store import Places, Segment
from jaxarch.convert.tensors import TensorInfo
from jaxarch.errors import ConversionError, require_torch
from jaxarch.files import first_line


def torch_places(path: Path, infos: Mapping[str, TensorInfo]) -> Places:
    """Where the bytes of tensors go in `path`.

    Raises:
        UsageError: torch is not installed.
        ConversionError: torch has no such dtype, or the temporary folder takes no file of that length.
    """
    torch = require_torch(f"writing {path.name}")
    # torch aligns the records, so an archive of holes, which takes hardly any space, says where they begin.
    try:
        with tempfile.TemporaryDirectory() as folder:
            skeleton = Path(folder, path.name)  # the name is in the archive, too
            _save(torch, skeleton, infos)
            offsets, size = _offsets(torch, skeleton), skeleton.stat().st_size
    except OSError as e:
        raise ConversionError(f"{path} could not be written: {first_line(e)}") from None
    segments = {k: [Segment(path.name, offsets[k], i.nbytes)] for k, i in infos.items()}
    return Places(
        segments,
        {path.name: size},
        lambda folder: _save(torch, folder / path.name, infos),
        entry=path.name,
        seal=lambda folder, sums: _seal(
            folder / path.name, {offsets[k]: sums[k] for k, i in infos.items() if i.nbytes}
        ),
    )


def _save(torch: Any, path: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Write an archive of tensors without their numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        content = {k: torch.empty(_torch_shape(k, i), dtype=_dtype(torch, k, i)) for k, i in infos.items()}
        try:
            torch.save(content, path)
        except RuntimeError as e:  # how torch reports a full disk
            raise OSError(first_line(e)) from None


def _offsets(torch: Any, path: Path) -> dict[str, int]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        content = torch.load(path, weights_only=True)
    return {k: v.untyped_storage()._checkpoint_offset for k, v in content.items()}


def _dtype(torch: Any, name: str, info: TensorInfo) -> Any:
    dtype = info.numpy
    known = FLOAT4_PAIRS if dtype == FLOAT4 else dtype.names[0] if dtype.names else dtype.name
    if not hasattr(torch, known):
        raise ConversionError(f"{name!r} is {info.dtype}, which torch does not have")
    return getattr(torch, known)


def _torch_shape(name: str, info: TensorInfo) -> tuple[int, ...]:
    """The shape in torch, which counts pairs of numbers of four bits."""
    if info.numpy != FLOAT4:
        return info.shape
    if not info.shape or info.shape[-1] % 2:
        raise ConversionError(
            f"{name!r} is {info.dtype} {info.shape}: torch stores pairs, the last size must be even"
        )
    return (*info.shape[:-1], info.shape[-1] // 2)


def _seal(path: Path, sums: Mapping[int, int]) -> None:
    """Fill in the CRC-32 of the records whose bytes begin at the offsets in `sums`: in each header, in the descriptor
    behind the bytes, and in the directory of the archive."""
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        for entry in entries:
            file.seek(position)
            fixed = file.read(46)
            lengths = struct.unpack("<3H", fixed[28:34])
            file.seek(entry.header_offset + 26)
            start = entry.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
            if start in sums and entry.file_size:
                crc = struct.pack("<I", sums[start])
                places = [position + 16, entry.header_offset + 14]
                if entry.flag_bits & 8:
                    places.append(start + entry.file_size + 4)
                for place in places:
                    file.seek(place)
                    file.write(crc)
            position += 46 + sum(lengths)
        file.flush()
        os.fsync(file.fileno())
