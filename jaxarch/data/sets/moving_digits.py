"""scikit-learn's digits, moving: Srivastava et al. 2015, arXiv:1502.04681, in small."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch.data import Batch, Source
from jaxarch.data.sets import digits


def load(
    *,
    out: Path,
    arguments: Mapping[str, Any],
    seed: int,
    size: int = 16,
    frames: int = 10,
    shown: int = 2,
    count: int = 2000,
) -> Source:
    """Films x (N, frames, size, size, 1) in [0, 1] of `shown` digits that cross the picture and bounce off its edges.

    The digits of the test films are not those of the training films; a fifth as many films are for testing.
    """
    source = digits.load(out=out, arguments={}, seed=seed)
    rng = np.random.default_rng(0)
    parts = [
        _films(part["x"], n, size, frames, shown, rng)
        for part, n in ((source.train, count), (source.test, count // 5))
    ]
    return Source(train=parts[0], test=parts[1], classes=0, items=frames - 1, unit="frames")


def _films(
    pictures: np.ndarray, count: int, size: int, frames: int, shown: int, rng: np.random.Generator
) -> Batch:
    room = size - pictures.shape[1]
    chosen = pictures[rng.integers(0, len(pictures), (count, shown))]
    start = rng.integers(0, room + 1, (count, shown, 1, 2))
    speed = rng.choice([-2, -1, 1, 2], (count, shown, 1, 2))
    # Bouncing between 0 and `room` is a walk around a circle of 2 * room, folded.
    at = (start + speed * np.arange(frames)[:, None]) % (2 * room)
    at = np.minimum(at, 2 * room - at)
    films = np.zeros((count, frames, size, size, 1), np.float32)
    for film, own, places in zip(films, chosen, at, strict=True):
        for picture, path in zip(own, places, strict=True):
            for frame, (top, left) in zip(film, path, strict=True):
                window = frame[top : top + len(picture), left : left + len(picture)]
                np.maximum(window, picture, out=window)
    return {"x": films, "label": np.zeros(count, np.int32)}
