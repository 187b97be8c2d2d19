"""Time by named, nested sections, and traces for a profiler's viewer."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One section: its path through the enclosing sections, calls, total seconds, and those outside inner sections."""

    path: tuple[str, ...]
    calls: int
    total: float
    own: float


class Section:
    """A running section."""

    def __init__(self) -> None:
        self.results: list[Any] = []

    def watch(self, results: Any) -> Any:
        """Return `results`; the section ends when their device is done."""
        self.results.append(results)
        return results


class AutogradProfiler:
    """Times sections of code by name; a section within another is counted under it."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, ...], int] = {}
        self.seconds: dict[tuple[str, ...], float] = {}
        self.path: tuple[str, ...] = ()

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[Section]:
        """Time what runs within; traces show it under its name, too."""
        outer, self.path = self.path, (*self.path, name)
        # An outer section is listed before its inner ones, though it ends after them.
        self.calls[self.path] = self.calls.get(self.path, 0) + 1
        self.seconds.setdefault(self.path, 0.0)
        section, start = Section(), time.perf_counter()
        try:
            with torch.profiler.record_function(name):
                yield section
                if torch.accelerator.is_available():
                    torch.accelerator.synchronize()
        finally:
            self.seconds[self.path] += time.perf_counter() - start
            self.path = outer

    @contextlib.contextmanager
    def trace(self, folder: str | os.PathLike) -> Iterator[None]:
        """Write a trace of all operations to `folder`, for TensorBoard's profiler or a browser's."""
        with torch.profiler.profile(
            on_trace_ready=torch.profiler.tensorboard_trace_handler(os.fspath(folder))
        ):
            yield

    def rows(self) -> list[Row]:
        """The sections, each followed by those within it, in the order of their first run."""
        inner = {p: sum(s for q, s in self.seconds.items() if q[:-1] == p) for p in self.seconds}
        order = {p: i for i, p in enumerate(self.seconds)}
        paths = sorted(self.seconds, key=lambda p: [order[p[: i + 1]] for i in range(len(p))])
        return [Row(p, self.calls[p], self.seconds[p], self.seconds[p] - inner[p]) for p in paths]

    def summary(self) -> str:
        """The sections as a table: calls, total seconds, milliseconds per call, share of the enclosing section."""
        rows = self.rows()
        whole = sum(r.total for r in rows if len(r.path) == 1)
        labels = ["  " * (len(r.path) - 1) + r.path[-1] for r in rows]
        width = max([len(label) for label in labels] + [len("section")])
        lines = [f"{'section':{width}}{'calls':>8}{'seconds':>10}{'ms/call':>10}{'share':>8}"]
        for label, r in zip(labels, rows, strict=True):
            enclosing = self.seconds[r.path[:-1]] if len(r.path) > 1 else whole
            lines.append(
                f"{label:{width}}{r.calls:8d}{r.total:10.3f}{1e3 * r.total / r.calls:10.2f}{r.total / enclosing:8.1%}"
            )
        return "\n".join(lines)
