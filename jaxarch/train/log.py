"""The log of a run: metrics.jsonl, monitor.jsonl, TensorBoard events and a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxarch.errors import DivergenceError
from jaxarch.files import write_text

METRICS, MONITOR = "metrics.jsonl", "monitor.jsonl"
Row = Mapping[str, Any]


class MetricsLog:
    """A context in which `log(step, metrics)` writes one line per step, one step late.

    Reading the metrics of the step that was just dispatched would wait for the device; `flush` does wait.

    Args:
        out: the folder of the run.
        learning_rate: step -> the learning rate, which is written beside the metrics.
        start: the step that is resumed from; later lines of an older log are dropped.
        bar: yields a function that is called with every row of training metrics, see `progress_bar`.
    """

    def __init__(
        self,
        out: Path,
        *,
        learning_rate: Callable[[int], Any],
        start: int,
        bar: contextlib.AbstractContextManager[Callable[[Row], None]],
    ) -> None:
        self.out, self.learning_rate = out, learning_rate
        out.mkdir(parents=True, exist_ok=True)
        self.history = read_history(out / METRICS, start)
        self._bar = bar
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "MetricsLog":
        from tensorboardX import SummaryWriter

        self._file = self._stack.enter_context(open(self.out / METRICS, "a"))
        self._board = self._stack.enter_context(SummaryWriter(str(self.out / "tensorboard")))
        self._advance = self._stack.enter_context(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of a step and write those of the previous one.

        Raises:
            DivergenceError: the loss of the previous step is not finite.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Wait for the metrics of the newest step and write them.

        Raises:
            DivergenceError: its loss is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        row = {"step": step, **{k: float(v) for k, v in metrics.items() if not k.startswith("monitor")}}
        row["lr"] = float(self.learning_rate(step - 1))
        if not math.isfinite(row["loss"]):
            raise DivergenceError(
                f"the loss of step {step} is {row['loss']}: lower train.lr or train.max_grad_norm;"
                f" checkpoints in {self.out} are from before"
            )
        self.history.append(row)
        self.write(row)
        for key in metrics.keys() - row.keys():
            measures = jax.tree.map(lambda x: np.asarray(x).tolist(), metrics[key])
            with open(self.out / MONITOR, "a") as file:
                file.write(json.dumps({"step": step, "update": key, **measures}) + "\n")
        self._advance(row)

    def write(self, row: Row) -> None:
        """Write one line of numbers, one of which is the "step"."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if key != "step":
                self._board.add_scalar(key, value, row["step"])


@contextlib.contextmanager
def progress_bar(
    name: str, *, total: int, start: int, items: int, unit: str, show: bool
) -> Iterator[Callable[[Row], None]]:
    """A progress bar with loss, items per second and time left; yields the function that takes each row of metrics.

    Args:
        total: the last step.
        start: the step that is resumed from.
        items: the number of items in one step; `unit` is their name.
    """
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
    )
    begun = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        bar = progress.add_task("", total=total, completed=start, loss=math.nan, speed=0.0, unit=unit)

        def advance(row: Row) -> None:
            speed = (row["step"] - start) * items / max(time.monotonic() - begun, 1e-9)
            progress.update(bar, completed=row["step"], loss=row["loss"], speed=speed)

        yield advance


def is_log(path: Path) -> bool:
    """Whether every complete line of a file is a row of `MetricsLog`; an empty file is a log."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return path.stat().st_size == 0 or (bool(rows) and all(type(r["step"]) is int for r in rows))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def read_history(path: Path, start: int) -> list[dict[str, Any]]:
    """The training rows of a log up to the step `start`; later rows are removed, since their steps are repeated."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    rows = [r for r in rows if r["step"] <= start]
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))
    return [r for r in rows if "loss" in r]
