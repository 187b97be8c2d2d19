"""Carbon dioxide over Mauna Loa, 1958-2001 (Keeling and Whorf), as statsmodels ships it."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch
from jaxarch.errors import DataError, require


def load(*, arguments: Mapping[str, Any], window: int = 36, tested: int = 120) -> ArraySource:
    """Windows of monthly means and what follows them; the last `tested` months are for testing alone.

    Windows are counted from their last value in standard deviations of the training months: x (N, window, 1), target
    (N, H), with H the model's pred_steps; `scale` (N,) turns them back into parts per million. `extra` holds
    the whole series and the first month of testing.

    Raises:
        UsageError: statsmodels is not installed.
        DataError: the series is too short for the windows.
    """
    series, horizon = monthly(), arguments["pred_steps"]
    cut = len(series) - tested
    if cut < window + horizon or tested < horizon:
        raise DataError(
            f"{len(series)} months hold no window of {window} before {horizon} both before and in the last"
            f" {tested}: lower train.options.window"
        )
    scale = float(series[:cut].std())
    train = _windows(series[:cut], window, horizon, scale)
    # The targets of a test window all lie in the tested months; its inputs may lie before them.
    test = _windows(series[cut - window :], window, horizon, scale)
    return ArraySource(
        train=train,
        test=test,
        classes=0,
        unit="windows",
        extra={"series": series, "cut": cut, "scale": scale},
    )


def _windows(series: np.ndarray, window: int, horizon: int, scale: float) -> Batch:
    rows = np.lib.stride_tricks.sliding_window_view(series, window + horizon)
    rows = (rows - rows[:, window - 1 : window]) / scale
    rows = rows.astype(np.float32)
    return {
        "x": rows[:, :window, None],
        "target": rows[:, window:].copy(),
        "scale": np.full(len(rows), scale, np.float32),
    }


def monthly() -> np.ndarray:
    """Means of the weeks of each month, in parts per million; months without any are interpolated.

    Raises:
        UsageError: statsmodels is not installed.
    """
    package = require("statsmodels", "recipes", "data co2")
    weeks: dict[int, list[float]] = {}
    with open(Path(package.__path__[0], "datasets", "co2", "co2.csv"), newline="") as file:
        for row in csv.DictReader(file):
            month = int(row["date"][:4]) * 12 + int(row["date"][4:6]) - 1
            weeks.setdefault(month, [])
            if row["co2"]:
                weeks[month].append(float(row["co2"]))
    known = [month for month in sorted(weeks) if weeks[month]]
    return np.interp(range(known[0], known[-1] + 1), known, [np.mean(weeks[month]) for month in known])
