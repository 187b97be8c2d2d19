"""Files and folders that are written whole or not at all.

Each is written under a private temporary name beside its target, `.NAME.HOST.PID.tmp`, synchronised to the disk and
renamed when complete. Only its owner removes it, or the next writer of that target once its owner is dead.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from jaxarch.errors import ConversionError, UsageError

# How far into a file `check_replaceable` looks for the mark of what wrote it.
MARK_BYTES = 1 << 14
# The mark of a PNG and of an HTML page.
PNG_MARK, HTML_MARK = b"Software\0jaxarch", b'<meta name="generator" content="jaxarch">'

_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())[:64] or "localhost"
_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<host>[\w-]+))?\.(?P<pid>\d+)(-\d+)?\.tmp(\.\w+)?", re.DOTALL)
_count = itertools.count()
# Temporary names in use by this process: a process number is used again after a reboot or in another container.
_own: set[Path] = set()


def write_whole(path: Path, write: Callable[[str], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then move the result to `path`.

    Raises:
        ConversionError: the file could not be written; `path` is unchanged and no temporary file is left.
    """
    try:
        with replacing(path) as temporary:
            write(str(temporary))
    except (OSError, RuntimeError) as e:
        raise ConversionError(f"{path} could not be written: {first_line(e)}") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        ConversionError: as `write_whole`.
    """
    write_whole(path, lambda temporary: Path(temporary).write_text(text))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A private name beside `path`; what the block makes there, file or folder, replaces `path` when it ends.

    After an error nothing is left of it, and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = private_name(path)
    try:
        yield temporary
        move(temporary, path)
    finally:
        discard(temporary)


def private_name(path: Path, keep: Collection[Path] = ()) -> Path:
    """A temporary name beside `path` that belongs to this process until `discard`.

    It ends as `path` does, for writers that choose a format by the suffix. Leftovers of dead processes for the same
    target are removed, except those in `keep`.
    """
    _recover(path)
    for leftover in leftovers(path):
        if leftover not in keep:
            remove(leftover)
    suffix = path.suffix if re.fullmatch(r"\.\w+", path.suffix) else ""
    temporary = path.with_name(f".{path.name[:128]}.{_HOST}.{os.getpid()}-{next(_count)}.tmp{suffix}")
    _own.add(temporary.absolute())
    return temporary


def discard(temporary: Path) -> None:
    """Remove what is left under a private name, and give the name back."""
    remove(temporary)
    _own.discard(temporary.absolute())


def leftovers(path: Path) -> list[Path]:
    """The temporary files and folders of `path` whose owners, processes of this machine, are dead."""
    return _dead(path.parent, lambda name: name == path.name[:128])


def clean(folder: Path, is_target: Callable[[str], bool]) -> None:
    """Remove the leftovers of dead processes of all targets in a folder whose names `is_target` takes."""
    for leftover in _dead(folder, is_target):
        remove(leftover)


def _dead(folder: Path, is_target: Callable[[str], bool]) -> list[Path]:
    names = [(p, _TEMPORARY.fullmatch(p.name)) for p in folder.glob(".*.tmp*")]
    return [
        p
        for p, found in names
        if found and is_target(found["name"]) and found["host"] in (None, _HOST)  # None in earlier versions
        if p.absolute() not in _own and not (_is_alive(pid := int(found["pid"])) and pid != os.getpid())
    ]


def move(temporary: Path, path: Path) -> None:
    """Synchronise a file or folder to the disk and let it take the place of `path`."""
    sync(temporary)
    if path.is_dir() and not path.is_symlink():
        old = _aside(path)
        path.rename(old)
        try:
            temporary.rename(path)
        finally:
            _recover(path)
    else:
        os.replace(temporary, path)
    _sync_one(path.parent)


def sync(path: Path, *, drop: bool = False) -> None:
    """Synchronise a file, or a folder and everything below it, to the disk.

    Args:
        drop: let the next read come from the disk, and not from the page cache.
    """
    sync_all(
        [Path(folder, name) for folder, _, names in os.walk(path) for name in (*names, "")] or [path],
        drop=drop,
    )


def sync_all(paths: Sequence[Path], *, drop: bool = False) -> None:
    """Synchronise files and folders to the disk, without what is below them; `drop` as `sync`."""
    with ThreadPoolExecutor(min(16, len(paths) or 1)) as threads:  # the disk takes many at once
        list(threads.map(lambda p: _sync_one(p, drop=drop), paths))


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on writing `path`, which ends with the process at the latest.

    Raises:
        ConversionError: another process, or another thread of this one, is writing `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name[:128]}.lock")
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            owner = os.pread(handle, 100, 0).decode(errors="replace") or "another process"
            os.close(handle)
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConversionError(f"{path} is being written by {owner}: wait for it") from None
            raise
        if _is_same(handle, name):
            break
        os.close(handle)  # its owner has removed it between our opening and locking it
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {_HOST}".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            name.unlink()
        os.close(handle)


def check_replaceable(path: str | os.PathLike, mark: bytes) -> None:
    """Refuse to replace a file that carries other content than ours.

    Args:
        path: the file to be written. Nothing is there, an empty file, or one that an earlier call wrote.
        mark: bytes that stand in the first `MARK_BYTES` of every file of this kind that we write.

    Raises:
        UsageError: something else is there.
    """
    path = Path(path)
    try:
        if not os.path.lexists(path):
            return
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(MARK_BYTES)
            if not start or mark in start:
                return
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {first_line(e)}") from None
    raise UsageError(f"{path} exists and was not written by this command: choose another name")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device, which may never end, is not opened.

    Raises:
        ConversionError: there is none, it is something else, or it may not be read.
    """
    try:
        # A pipe without a writer would block until there is one.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file") from None
    except (OSError, ValueError) as e:
        raise ConversionError(f"{path} could not be opened: {first_line(e)}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ConversionError(f"{path} is not a regular file")
    return os.fdopen(handle, "rb", buffering=0)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


def _aside(path: Path) -> Path:
    """Where a folder goes while another takes its place, which is not one step."""
    return path.with_name(f".{path.name[:128]}.old")


def _recover(path: Path) -> None:
    """Put back a folder that was moved aside for one that did not come, or remove it if that one came."""
    if (old := _aside(path)).exists():
        if path.exists():
            remove(old)
        else:
            old.rename(path)


def _is_same(handle: int, name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), name.stat())
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_one(path: Path, *, drop: bool = False) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
        if drop:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
