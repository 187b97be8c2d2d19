"""How far generated samples are from real ones, by sums that add up over batches."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

_log = logging.getLogger(__name__)
COLLAPSED = 0.2


def moment_sums(x: Float[Array, "b *d"], weight: Float[Array, " b"], prefix: str) -> dict[str, Array]:
    """Count, sum and sum of outer products of rows, flattened; rows of weight 0 do not count."""
    rows = x.reshape(len(x), -1)
    weighted = rows * weight[:, None]
    return {
        f"{prefix}_count": weight.sum(),
        f"{prefix}_sum": weighted.sum(0),
        f"{prefix}_outer": weighted.T @ rows,
    }


def moments(sums: Mapping[str, Any], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of the rows behind `moment_sums`, in float64."""
    count = float(sums[f"{prefix}_count"])
    mean = np.asarray(sums[f"{prefix}_sum"], np.float64) / count
    return mean, np.asarray(sums[f"{prefix}_outer"], np.float64) / count - np.outer(mean, mean)


def frechet_distance(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Between two normal distributions (mean, covariance): Heusel et al. 2017, arXiv:1706.08500, equation 6."""
    (mean, cov), (other_mean, other_cov) = first, second
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ other_cov @ root)
    overlap = np.sqrt(np.maximum(product, 0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(cov) + np.trace(other_cov) - 2 * overlap)


def compared(sums: Mapping[str, Any]) -> dict[str, float]:
    """The Frechet distance of the "fake" from the "real" rows, and the ratio of their variances.

    A variance far below the real one is logged as a collapse.
    """
    real, fake = moments(sums, "real"), moments(sums, "fake")
    spread = float(np.trace(fake[1]) / np.trace(real[1]))
    if spread < COLLAPSED:
        _log.warning("the samples vary %.3f times as much as the data: the generator has collapsed", spread)
    return {"frechet": frechet_distance(real, fake), "spread": spread}
