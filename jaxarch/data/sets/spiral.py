"""Spirals sampled at irregular times: Chen et al. 2018, arXiv:1806.07366."""

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch

MATRIX = np.array([[-0.1, 2.0], [-2.0, -0.1]])
SUBSTEPS = 20


def load(*, samples: int = 10, span: float = 1.0, noise: float = 0.02, count: int = 1000) -> ArraySource:
    """Starts x (N, 2), times (N, samples) from 0 to below `span`, irregular, each row its own; target (N, samples, 2).

    The field is dy/dt = y^3 A, y cubed number by number; starts lie on all sides, 0.4 to 2 from the centre.
    Training targets carry normal noise; the test rows, a fifth as many, have other starts and times and none.
    """
    rng = np.random.default_rng(0)
    parts = []
    for n, error in ((count, noise), (count // 5, 0.0)):
        radius, angle = rng.uniform(0.4, 2, n), rng.uniform(0, 2 * np.pi, n)
        start = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
        times = np.sort(rng.uniform(0, span, (n, samples)), 1)
        times[:, 0] = 0
        target = solve(start, times)
        target[:, 1:] += error * rng.normal(size=target[:, 1:].shape)
        batch: Batch = {"x": start, "times": times, "target": target}
        parts.append({k: v.astype(np.float32) for k, v in batch.items()})
    return ArraySource(train=parts[0], test=parts[1], classes=0, unit="pieces")


def solve(start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The true paths (N, T, 2) from starts (N, 2) at times (N, T), by 20 classical Runge-Kutta steps in between."""

    def slope(y: np.ndarray) -> np.ndarray:
        return y**3 @ MATRIX

    path, y = [start], start
    for h in np.diff(times, axis=1).T[..., None] / SUBSTEPS:
        for _ in range(SUBSTEPS):
            k1 = slope(y)
            k2 = slope(y + h / 2 * k1)
            k3 = slope(y + h / 2 * k2)
            k4 = slope(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        path.append(y)
    return np.stack(path, 1)
