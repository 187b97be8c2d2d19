"""What a Hugging Face folder holds beside its weights: which of its files go along with them, and why others do not."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from jaxarch.convert.hub_config import CODE_KEYS, CONFIG
from jaxarch.errors import ConversionError, printable
from jaxarch.files import first_line, write_whole

# Where a checkpoint of ours keeps them.
FOLDER = "hub"
MAX_FILE, MAX_TOTAL, MAX_FILES = 64 << 20, 256 << 20, 200
_SUFFIXES = ("json", "txt", "md", "model", "jinja", "tiktoken", "vocab", "bpe", "merges")
_PREFIXES = ("license", "licence", "notice", "copying", "readme", "use_policy")
_TEXTS = re.compile(rf"(?i)(.*\.({'|'.join(_SUFFIXES)})|({'|'.join(_PREFIXES)}).*)")
# The same for huggingface-hub, which tells capitals from small letters.
TEXT_PATTERNS = (*(f"*.{s}" for s in _SUFFIXES), *(f"{p.upper()}*" for p in _PREFIXES))
_NAME = re.compile(r"[\w][\w.+-]*(/[\w][\w.+-]*)?")
_CODE = (".py", ".pyc", ".so", ".ipynb", ".sh")
_WEIGHTS = re.compile(
    r"(model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json|\.checksums\.json)?|checksums\.json"
)


@dataclass(frozen=True)
class Carried:
    """The files that go along, by their names in the folder with the SHA-256 of each; and the others, with the reason.

    Attributes:
        cleaned: files of JSON that go along without their keys that name code.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    cleaned: tuple[str, ...] = ()


def survey(folder: Path, extra: tuple[str, ...] = ()) -> Carried:
    """Decide what of a folder goes along: regular files of text and tokenizers, of bounded size, without code.

    Args:
        extra: further names of files that are accounted for.
    """
    files: dict[str, str] = {}
    left: dict[str, str] = {}
    cleaned: list[str] = []
    total = 0
    for name, path in _entries(folder):
        if name in (CONFIG, *extra) or _WEIGHTS.fullmatch(name):
            continue
        reason, size = _refusal(folder, name, path)
        if reason is None and (total + size > MAX_TOTAL or len(files) == MAX_FILES):
            reason = f"the files are together more than {MAX_TOTAL:,} bytes or {MAX_FILES} files"
        if reason is not None:
            left[printable(name)] = reason
            continue
        content = _content(path)
        total += size
        files[name] = hashlib.sha256(content).hexdigest()
        if content != path.read_bytes():
            cleaned.append(name)
    return Carried(files, left, tuple(cleaned))


def carry(source: Path, target: Path, files: Mapping[str, str]) -> None:
    """Copy the files that a survey has found into another folder.

    Raises:
        ConversionError: a file has changed, leads out of its folder, or could not be written.
    """
    for name, digest in files.items():
        if not _NAME.fullmatch(name):
            raise ConversionError(f"{source} names {printable(repr(name))}, which is no file in it")
        reason, _ = _refusal(source, name, source / name)
        if reason is not None:
            raise ConversionError(f"{source / name}: {reason}")
        content = _content(source / name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ConversionError(
                f"{source / name} is damaged or edited: it has other bytes than were written"
            )
        write_whole(target / name, partial(_write, content=content))


def _entries(folder: Path) -> list[tuple[str, Path]]:
    """The files of a folder and of the folders in it, and what lies deeper as it is."""
    entries = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            entries += [(f"{path.name}/{p.name}", p) for p in sorted(path.iterdir())]
        else:
            entries.append((path.name, path))
    return entries


def _refusal(folder: Path, name: str, path: Path) -> tuple[str | None, int]:
    """(why a file does not go along or None, its size)"""
    if name.startswith(".") or not _NAME.fullmatch(name):
        return "its name", 0
    if path.suffix.lower() in _CODE:
        return "it is code, which only those who trust it should run", 0
    if not _TEXTS.fullmatch(path.name):
        return "it is no text and no file of a tokenizer", 0
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as e:
        return first_line(e), 0
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file", 0
    if not real.is_relative_to(_root(folder)):
        return "it is a link out of the folder", 0
    if status.st_size > MAX_FILE:
        return f"it is larger than {MAX_FILE:,} bytes", 0
    return None, status.st_size


def _root(folder: Path) -> Path:
    """The folder that links may lead to: itself; in the Hub's cache the repository's folder, which has the blobs."""
    real = Path(os.path.realpath(folder))
    in_cache = real.parent.name == "snapshots" and real.parent.parent.name.startswith("models--")
    return real.parent.parent if in_cache else real


def _write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def _content(path: Path) -> bytes:
    """The bytes of a file; of JSON with keys that name code, without these."""
    content = path.read_bytes()
    if path.suffix.lower() != ".json" or not any(k.encode() in content for k in CODE_KEYS):
        return content
    try:
        table = json.loads(content)
    except (ValueError, RecursionError):
        return content
    if not isinstance(table, dict) or not any(k in table for k in CODE_KEYS):
        return content
    table = {k: v for k, v in table.items() if k not in CODE_KEYS}
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
