"""Weights from a source to a target, tensor by tensor: no more of them is in memory than a few blocks."""

import json
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.convert.manifest import text_hash
from jaxarch.convert.tensors import Tensor, TensorInfo, TensorWriter

# Blocks that are read ahead.
_AHEAD = 6


def infos_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """What each tensor is."""
    return {name: tensor.info for name, tensor in tensors.items()}


def copy(tensors: Mapping[str, Tensor], writer: TensorWriter) -> None:
    """Write all tensors that a writer does not have yet, and finish it.

    One thread reads, with every permutation and cast of the tensors' views, while another hashes and writes.

    Raises:
        ConversionError: a tensor cannot be read or written.
    """
    done: frozenset[str] = getattr(writer, "done", frozenset())
    for name, block in _ahead(_blocks({k: v for k, v in tensors.items() if k not in done})):
        writer.write(name, block)
    writer.finish()


def fingerprint(source: Path, *settings: Any) -> str:
    """A name for the content that a conversion of `source` with `settings` writes.

    Args:
        source: a file or folder; its files count by name, size and time of change.
        settings: JSON.
    """
    found = sorted(source.rglob("*")) if source.is_dir() else [*source.parent.glob(f"{source.name}*")]
    stats = [(str(p.relative_to(source.parent)), p.stat()) for p in found if p.is_file()]
    content = [[(name, s.st_size, s.st_mtime_ns) for name, s in stats], *settings]
    return text_hash(json.dumps(content, default=str))


def _blocks(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    for name, tensor in tensors.items():
        if tensor.nbytes == 0:
            yield name, tensor.read()
        for block in tensor.blocks():
            yield name, block


def _ahead(items: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The items of an iterator that runs in a thread of its own, a few items ahead; its error is raised here."""
    ready: queue.Queue[Any] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def run() -> None:
        try:
            for item in items:
                ready.put(item)
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as e:
            ready.put(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.05)
            except queue.Empty:
                continue
        thread.join()
