"""A writer of files whose places for bytes are known before the first byte comes, with resume after a crash.

Shards of safetensors, chunks of zarr and records of a torch file are all bytes at an offset. They are written in a
private folder, each tensor hashed as it comes and read back from the disk, and moved to the target when all are there.
A journal in that folder says which tensors are safe: the next process that writes the same content to the same target
keeps them.
"""

import contextlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from jaxarch import files
from jaxarch.convert.manifest import FOLDER_NAME, Hasher, Manifest, changed, sidecar, text_hash
from jaxarch.convert.tensors import BLOCK_BYTES, TensorInfo, raw_bytes
from jaxarch.errors import ConversionError

JOURNAL = "journal.jsonl"
# Bytes between two synchronisations with the disk.
_SYNC_BYTES = 256 << 20
_HEADROOM = 1 << 20
_MAX_OPEN = 64


class Segment(NamedTuple):
    """Where a run of a tensor's bytes lies: the file, by its name in the target, the offset in it and the length."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Places:
    """Where everything goes.

    Attributes:
        segments: for each tensor, where its bytes in C order lie.
        files: the data files with their sizes.
        prepare: makes the files, in a folder it is given, with all but the bytes of tensors.
        texts: small files beside them; the manifest covers those that are in no folder.
        entry: the file that is opened to read the tensors; None if the target is a folder, which holds all files.
        seal: finishes the files, in a folder it is given, with the CRC-32 of each tensor.
    """

    segments: Mapping[str, Sequence[Segment]]
    files: Mapping[str, int]
    prepare: Callable[[Path], None]
    texts: Mapping[str, str] = field(default_factory=dict)
    entry: str | None = None
    seal: Callable[[Path, Mapping[str, int]], None] | None = None


class _Digest:
    """The hash of bytes, and their CRC-32 where it is asked for."""

    def __init__(self, *, with_crc: bool) -> None:
        self._hasher, self._with_crc, self.crc = Hasher(), with_crc, 0

    def update(self, data: Any) -> None:
        self._hasher.update(data)
        if self._with_crc:
            self.crc = zlib.crc32(data, self.crc)

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


class StoreWriter:
    """A `TensorWriter` of files by their `Places`.

    Args:
        target: the file or folder that appears.
        fingerprint: names the content, down to the bytes; a crashed write of the same content is continued.

    Raises:
        ConversionError: another process is writing `target`, or the disk is too small.
    """

    def __init__(
        self,
        target: Path,
        infos: Mapping[str, TensorInfo],
        places: Places,
        *,
        fingerprint: str | None = None,
    ) -> None:
        self.target, self.infos, self._places = Path(target), dict(infos), places
        # Of the layout, too: a file of other shards is not continued.
        layout = json.dumps([self.infos, dict(places.files), dict(places.texts)])
        self._fingerprint = None if fingerprint is None else text_hash(fingerprint + layout)
        self._hashes: dict[str, str] = {}
        self._crcs: dict[str, int] = {}
        self._partial: dict[str, tuple[Any, int]] = {}
        self._unsafe: list[str] = []
        self._unsafe_bytes = 0
        self._handles: dict[str, int] = {}
        self._secured: Future[None] | None = None
        self._stack = contextlib.ExitStack()
        try:
            self._thread = self._stack.enter_context(ThreadPoolExecutor(1))
            self._stack.enter_context(files.locked(self.target))
            self._folder = self._start()
        except OSError as e:
            self._stack.close()
            raise self._failed(e) from None
        except BaseException:
            self._stack.close()
            raise

    @property
    def done(self) -> frozenset[str]:
        """The tensors that are written; after a crash, those that need not be written again."""
        return frozenset(self._hashes)

    def write(self, name: str, value: np.ndarray) -> None:
        """Append a tensor, or the next part of it in C order."""
        info = self.infos[name]
        if value.dtype != info.numpy:
            raise ConversionError(f"{name!r} is {value.dtype}, {info.dtype} was announced")
        data = raw_bytes(value)
        hasher, position = self._partial.pop(name, None) or (self._digest(), 0)
        if name in self._hashes or position + data.nbytes > info.nbytes:
            raise ConversionError(f"{name!r} has more bytes than {info.dtype} {info.shape} needs")
        hasher.update(data.data)
        try:
            self._put(name, data, position)
            position += data.nbytes
            if position < info.nbytes:
                self._partial[name] = hasher, position
                return
            self._hashes[name], self._crcs[name] = hasher.hexdigest(), hasher.crc
            self._unsafe.append(name)
            self._unsafe_bytes += info.nbytes
            if self._unsafe_bytes >= _SYNC_BYTES:
                self._secure_soon()
        except OSError as e:
            raise self._failed(e) from None

    def finish(self) -> None:
        """Verify what was written and move it to the target."""
        if missing := [k for k in self.infos if k not in self._hashes]:
            raise ConversionError(f"{self.target}: {missing[0]!r} was not written")
        try:
            self._secure_soon()
            self._wait()
            self._close()
            if self._places.seal is not None:
                self._places.seal(self._folder, self._crcs)
            for name, text in self._places.texts.items():
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            self._publish()
        except OSError as e:
            raise self._failed(e) from None
        self.close()

    def close(self) -> None:
        """Remove what is not finished."""
        with contextlib.suppress(OSError, ConversionError):  # an error has been raised already
            self._wait()
        self._close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> Path:
        """The private folder: that of a dead process with the same content, or a new one."""
        folder = self._adopted()
        self._stack.callback(files.discard, folder)
        size = sum(self._places.files.values())
        kept = sum(self.infos[k].nbytes for k in self._hashes)
        free = shutil.disk_usage(self.target.parent).free
        if size - kept + _HEADROOM > free:
            raise ConversionError(
                f"{self.target} needs {size - kept:,} bytes, the disk has {free:,} free: free space or choose another"
            )
        if not (folder / JOURNAL).is_file():
            folder.mkdir()
            self._places.prepare(folder)
            files.sync(folder)
            self._log({"fingerprint": self._fingerprint})
        return folder

    def _adopted(self) -> Path:
        """A private name, under which the folder of a dead process with the same content is, if there is one."""
        kept = [p for p in files.leftovers(self.target) if self._fingerprint and self._journal(p)][:1]
        folder = self._folder = files.private_name(self.target, keep=kept)
        for old in kept:
            old.rename(folder)
            for name, digest in self._journal(folder)[1:]:
                stored = self._read_back(name) if name in self.infos else self._digest()
                if stored.hexdigest() == digest:
                    self._hashes[name], self._crcs[name] = digest, stored.crc
            rows = [{"fingerprint": self._fingerprint}, *self._hashes.items()]
            files.write_text(folder / JOURNAL, _lines(rows))  # the last line of the old one may be cut off
        return folder

    def _journal(self, folder: Path) -> list[tuple[str, str]]:
        """(tensor, hash) of the journal of a folder; an empty first row shows that it has this content."""
        rows: list[Any] = []
        with contextlib.suppress(OSError, ValueError):  # the last line may be cut off
            for line in (folder / JOURNAL).read_text().splitlines():
                rows.append(json.loads(line))
        if not rows or rows[0] != {"fingerprint": self._fingerprint}:
            return []
        return [("", ""), *((str(name), str(digest)) for name, digest in rows[1:])]

    def _log(self, *rows: Any) -> None:
        with open(self._folder / JOURNAL, "a") as file:
            file.write(_lines(rows))
            file.flush()
            os.fsync(file.fileno())

    def _put(self, name: str, data: np.ndarray, position: int) -> None:
        """Write bytes of a tensor, the first of which is its byte `position`."""
        for segment, start in self._runs(name):
            low, high = max(start, position), min(start + segment.length, position + data.nbytes)
            if low < high:
                view, offset = (
                    data[low - position : high - position].data,
                    segment.offset + low - start,
                )
                while len(view):
                    written = os.pwrite(self._handle(segment.file), view, offset)
                    view, offset = view[written:], offset + written

    def _read_back(self, name: str) -> _Digest:
        """The hash of what the disk holds of a tensor."""
        hasher = self._digest()
        for segment, _ in self._runs(name):
            with open(self._folder / segment.file, "rb", buffering=0) as file:
                file.seek(segment.offset)
                left = segment.length
                while left and (block := file.read(min(BLOCK_BYTES, left))):
                    hasher.update(block)
                    left -= len(block)
        return hasher

    def _digest(self) -> _Digest:
        return _Digest(with_crc=self._places.seal is not None)

    def _runs(self, name: str) -> list[tuple[Segment, int]]:
        """The segments of a tensor, each with the number of its first byte in the tensor."""
        segments = self._places.segments[name]
        starts = itertools.accumulate((s.length for s in segments), initial=0)
        return list(zip(segments, starts, strict=False))

    def _secure_soon(self) -> None:
        """Let a thread make the tensors safe that were written since the last time, and wait for those before."""
        self._wait()
        self._secured = self._thread.submit(self._secure, self._unsafe)
        self._unsafe, self._unsafe_bytes = [], 0

    def _wait(self) -> None:
        if self._secured is not None:
            secured, self._secured = self._secured, None
            secured.result()

    def _secure(self, names: Sequence[str]) -> None:
        """Synchronise tensors with the disk, read them back, and note them in the journal."""
        dirty = sorted({segment.file for name in names for segment in self._places.segments[name]})
        files.sync_all([self._folder / file for file in dirty], drop=True)
        for name in names:
            if self._read_back(name).hexdigest() != self._hashes[name]:
                raise changed(self.target, f"{name!r} was not read back as it was written: check the disk")
        if self._fingerprint:
            self._log(*((name, self._hashes[name]) for name in names))

    def _publish(self) -> None:
        """Move the files to the target, the one that is opened last, and its manifest after it."""
        (self._folder / JOURNAL).unlink()
        tensors = {name: (info, self._hashes[name]) for name, info in self.infos.items()}
        texts = {k: text_hash(v) for k, v in self._places.texts.items() if "/" not in k}
        manifest, entry = Manifest(tensors, texts).dump(), self._places.entry
        if entry is None:
            (self._folder / FOLDER_NAME).write_text(manifest)
            files.move(self._folder, self.target)
            return
        files.remove(sidecar(self.target))
        for name in sorted({*self._places.files, *self._places.texts}, key=lambda name: name == entry):
            files.move(self._folder / name, self.target.with_name(name))
        files.write_text(sidecar(self.target), manifest)

    def _handle(self, file: str) -> int:
        if file not in self._handles:
            if len(self._handles) >= _MAX_OPEN:
                self._close()
            self._handles[file] = os.open(self._folder / file, os.O_RDWR | os.O_CLOEXEC)
        return self._handles[file]

    def _close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _failed(self, error: OSError) -> ConversionError:
        return ConversionError(
            f"{self.target} could not be written: {files.first_line(error)}; free space or change it"
        )


def _lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
