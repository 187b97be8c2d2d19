"""Where weights and runs are written to: which kind of place a name means, what may be replaced, and the writers."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxarch import state
from jaxarch.convert import stream
from jaxarch.convert.carried import FOLDER as BESIDE
from jaxarch.convert.carried import carry
from jaxarch.convert.checkpoint_folder import ABOUT, ARRAYS, open_checkpoint
from jaxarch.convert.files import SUFFIXES, create_tensors, open_tensors
from jaxarch.convert.hub import PREFIX, SHARD_BYTES, create_hub
from jaxarch.convert.hub_config import CONFIG
from jaxarch.convert.orbax import orbax_places
from jaxarch.convert.report import Report
from jaxarch.convert.safetensors_file import INDEX
from jaxarch.convert.shards import shards_of
from jaxarch.convert.store import StoreWriter
from jaxarch.convert.tensors import Tensor, TensorReader, TensorWriter, tensors_of
from jaxarch.convert.ties import same_bits
from jaxarch.errors import ConversionError, UsageError, nearest
from jaxarch.handover.run import OPTIMIZER, from_torch_run, to_torch_run
from jaxarch.handover.source import CHECKPOINT, FILE, HUB, RUN, TORCH_RUN, Source, Weights
from jaxarch.train import checkpoint

WRITTEN = tuple(s for s in SUFFIXES if s != ".msgpack")
# Suffixes that a user means as a file, and that are none of ours.
_FOREIGN = (
    *(".onnx", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".gguf", ".ggml", ".msgpack", ".npy", ".pkl"),
    *(".pickle", ".zip", ".tar", ".gz", ".json", ".txt", ".pdparams", ".mlmodel", ".toml"),
)
# One of these shows that a folder was written by a conversion, and may be replaced by `--force`.
_MARKS = (ABOUT, CONFIG, OPTIMIZER, "checkpoints")


@dataclass(frozen=True)
class Writing:
    """How to write.

    Attributes:
        shard_bytes: the most bytes of one file; None for one file, and for the Hub's limit in a folder of the Hub.
        settings: what else decides the content, by which a crashed write of the same is recognised.
        verify: read the target back and compare it with the source.
    """

    shard_bytes: int | None = None
    settings: Any = None
    verify: bool = False


def kind_of(target: str) -> str | None:
    """FILE or HUB by the name of a target; None for a folder, whose kind follows from what is written.

    Raises:
        UsageError: the name ends as a file that cannot be written.
    """
    if target.startswith(PREFIX):
        return HUB
    suffix = Path(target).suffix
    if suffix in WRITTEN:
        return FILE
    near = nearest(suffix.lower(), WRITTEN, n=1) if re.fullmatch(r"\.[A-Za-z]\w*", suffix) else []
    if suffix.lower() in _FOREIGN or (near and len(suffix) > 3):
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{target}: no file of that kind can be written: {hint}known: {', '.join(WRITTEN)}")
    return None


def check_target(path: Path, source: Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        ConversionError: it exists and `force` is not set; it is the source; or it holds other things.
    """
    if not path.exists() and not path.is_symlink() and not _index_of(path).exists():
        return
    if not force:
        raise ConversionError(
            f"{path if path.exists() else _index_of(path)} exists: choose a new name, or --force to overwrite it"
        )
    if source.exists() and (path.resolve() in (source.resolve(), *source.resolve().parents)):
        raise ConversionError(f"{path} is the source or holds it: choose another target")
    if path.is_dir() and any(path.iterdir()) and not any((path / m).exists() for m in _MARKS):
        raise ConversionError(f"{path} holds something else than weights: --force does not remove it")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise ConversionError(f"{path} is no regular file: choose another target")


def write(target: str, kind: str | None, source: Source, report: Report, how: Writing) -> None:
    """Write a source to a target of a kind.

    Raises:
        ConversionError: the weights do not fit, or could not be written.
    """
    _WRITERS[kind or source.folder](target.removeprefix(PREFIX), source, report, how)


def planned(target: str, kind: str | None, source: Source, report: Report, how: Writing) -> None:
    """Note in the report what `write` would write, in how many files, and whether there is room for it.

    A run is only written as a whole: of that there is no plan.
    """
    kind = kind or source.folder
    if kind in (TORCH_RUN, RUN):
        report.notes.append("nothing was written; a run has no plan")
        return
    weights = source.weights(report)
    report.wrote(weights.tensors)
    limit = how.shard_bytes or (SHARD_BYTES if kind == HUB else None)
    if limit is not None and (kind == HUB or target.endswith(".safetensors")):
        files, filled = 1, 0
        for tensor in weights.tensors.values():
            if filled and filled + tensor.nbytes > limit:
                files, filled = files + 1, 0
            filled += tensor.nbytes
        report.notes.append(f"{files} files of at most {limit:,} bytes")
    path = Path(target.removeprefix(PREFIX)).absolute()
    parent = next(p for p in path.parents if p.exists())
    free = shutil.disk_usage(parent).free
    room = "enough" if free > report.size else "too little"
    report.notes.append(f"nothing was written; {parent} has {free:,} bytes free, {room}")


def _write_file(target: str, source: Source, report: Report, how: Writing) -> None:
    """A weight file."""
    weights = source.weights(report)
    report.left |= dict.fromkeys(source.beside[1] if source.beside else [], "the target is one file")
    report.carried = []
    if source.config:
        report.left.setdefault("config.json", "the target is one file")
    metadata = source.metadata if Path(target).suffix in (".safetensors", ".npz") else {}
    report.carried += [f"metadata {k}" for k in metadata]
    report.left |= {
        f"metadata {k}": "this kind of file has none" for k in source.metadata if k not in metadata
    }
    mark = stream.fingerprint(source.path, how.settings, how.shard_bytes)
    infos = stream.infos_of(weights.tensors)
    path = Path(target)
    index, old = _index_of(path), _files_of(path)
    stamp = index.stat() if index.exists() else None
    writer = create_tensors(path, infos, metadata, shard_bytes=how.shard_bytes, fingerprint=mark)
    _copy(weights.tensors, writer, report)
    is_sharded = index.exists() and index.stat() != stamp
    entry = index if is_sharded else path
    _verify(entry, weights.tensors, report, how)
    for stale in old - ({entry, *(path.with_name(k) for k in shards_of(index))} if is_sharded else {path}):
        stale.unlink(missing_ok=True)  # of what was overwritten


def _write_hub(target: str, source: Source, report: Report, how: Writing) -> None:
    """A Hugging Face folder."""
    arguments, weights = source.arguments(), source.weights(report)
    report.carried += [f"metadata {k}" for k in source.metadata]
    mark = stream.fingerprint(source.path, how.settings, arguments, source.config, how.shard_bytes)
    writer = create_hub(
        target,
        source.model,
        arguments,
        stream.infos_of(weights.tensors),
        source.config,
        metadata=source.metadata,
        beside=source.beside,
        shard_bytes=how.shard_bytes or SHARD_BYTES,
        fingerprint=mark,
    )
    _copy(weights.tensors, writer, report)
    _verify(Path(target), weights.tensors, report, how)


def _write_checkpoint(target: str, source: Source, report: Report, how: Writing) -> None:
    """A checkpoint of weights alone."""
    weights = source.weights(report)
    about: dict[str, Any] = {"name": source.model, "variant": source.variant, "overrides": source.overrides}
    about |= {"hub": dict(source.config)} if source.config else {}
    about |= {"metadata": dict(source.metadata)} if source.metadata else {}
    about |= {"carried": dict(source.beside[1])} if source.beside else {}
    leaves = {
        f"{'params' if path in weights.trainable else 'rest'}/{path}": leaf
        for path, leaf in {**weights.leaves, **_initial(source, weights, report)}.items()
    }
    text = checkpoint.describe(about)
    places = orbax_places(stream.infos_of(leaves), ARRAYS, texts={ABOUT: text})

    def prepare(folder: Path) -> None:
        places.prepare(folder)
        if source.beside is not None:
            carry(source.beside[0], folder / BESIDE, source.beside[1])

    mark = stream.fingerprint(source.path, how.settings, json.loads(text))
    report.carried += [f"metadata {k}" for k in source.metadata]
    writer = StoreWriter(
        Path(target), stream.infos_of(leaves), replace(places, prepare=prepare), fingerprint=mark
    )
    with writer:
        stream.copy(leaves, writer)
    report.wrote(weights.tensors)
    _verify(Path(target), leaves, report, how, open_checkpoint)


def _initial(source: Source, weights: Weights, report: Report) -> dict[str, Tensor]:
    """The leaves that the source lacks, as the constructor makes them."""
    if not weights.missing:
        return {}
    leaves = state.flat(nnx.state(source.build()))
    report.missing |= {r.torch: "as the constructor makes it, from seed 0" for r in weights.missing}
    return {r.path: Tensor.of(np.asarray(leaves[r.path])) for r in weights.missing}


def _write_torch_run(target: str, source: Source, report: Report, how: Writing) -> None:
    """Torch's weights and optimizer, of a training checkpoint."""
    assert source.restored is not None  # else the source names another folder
    report.notes, report.left = [], {}
    report.written = to_torch_run(source.restored, Path(target))


def _write_run(target: str, source: Source, report: Report, how: Writing) -> None:
    """A run that training resumes, of torch's weights and optimizer."""
    report.written = from_torch_run(source.path, Path(target), source.model, source.variant)


_WRITERS: Mapping[str, Callable[[str, Source, Report, Writing], None]] = {
    FILE: _write_file,
    CHECKPOINT: _write_checkpoint,
    TORCH_RUN: _write_torch_run,
    RUN: _write_run,
    HUB: _write_hub,
}


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + INDEX)


def _files_of(path: Path) -> set[Path]:
    """The files of weights that lie at a target: itself, and the index with its shards."""
    files, index = {path}, _index_of(path)
    if index.is_file():
        files |= {index, *(path.with_name(k) for k in shards_of(index))}
    return {p for p in files if p.is_file()}


def _copy(tensors: Mapping[str, Tensor], writer: TensorWriter, report: Report) -> None:
    with writer:
        stream.copy(tensors, writer)
    report.wrote(tensors)


def _verify(
    path: Path,
    tensors: Mapping[str, Tensor],
    report: Report,
    how: Writing,
    opened: Callable[[Path], TensorReader] = open_tensors,
) -> None:
    """Read a target back and compare every tensor with its source.

    Raises:
        ConversionError: one differs.
    """
    if not how.verify:
        return
    with opened(path) as reader:
        written = tensors_of(reader)
        differing = sorted(set(written) ^ set(tensors))
        differing += [k for k, t in tensors.items() if k in written and not same_bits(t, written[k])]
        if differing:
            raise ConversionError(f"{path}: {differing[0]} was read back otherwise than it was written")
    report.verified = True
