"""Distances and similarities of vectors: functions and classes under torch's names."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn.module import Module

Vectors = Float[Array, "..."]


def absolute(x: Vectors) -> Vectors:
    """|x|, whose gradient at 0 is 0 as in torch; that of `jnp.abs` is 1."""
    return jnp.where(x == 0, 0, jnp.abs(x))


def vector_norm(
    x: Vectors, p: float = 2.0, dim: int | tuple[int, ...] = -1, keepdim: bool = False
) -> Vectors:
    """torch.linalg.vector_norm: (sum |x|^p)^(1/p) over `dim`, with torch's gradients.

    That of a norm of 0 is 0, that of the maximum (p infinite) is shared by equal elements, and that of the number of
    elements other than 0 (p = 0) is 0.
    """
    size = absolute(x)
    if p == 0:
        return (x != 0).astype(x.dtype).sum(dim, keepdims=keepdim)
    if p == 1:
        return size.sum(dim, keepdims=keepdim)
    if math.isinf(p):
        return _extreme(size, p > 0, dim, keepdim)
    if p == 2:
        total = jnp.square(x).sum(dim, keepdims=keepdim)
    else:
        powers = jnp.where(size > 0, size, 1) ** p
        total = jnp.where(size > 0, powers, 0 if p > 0 else math.inf).sum(dim, keepdims=keepdim)
    regular = (total > 0) & jnp.isfinite(total) if p < 0 else total != 0
    root = jnp.sqrt(jnp.where(regular, total, 1)) if p == 2 else jnp.where(regular, total, 1) ** (1 / p)
    return jnp.where(regular, root, 0)


def _extreme(size: Vectors, largest: bool, dim: int | tuple[int, ...], keepdim: bool) -> Vectors:
    """The largest or smallest element; equal ones share the gradient, and a norm of 0 has none."""
    fixed = jax.lax.stop_gradient(size)
    extreme = (fixed.max if largest else fixed.min)(dim, keepdims=True)
    tied = fixed == extreme
    # The element itself; the sum of the differences, which are 0, carries its gradient.
    shared = jnp.where(tied, size - fixed, 0).sum(dim, keepdims=True) / tied.sum(
        dim, keepdims=True, dtype=size.dtype
    )
    return extreme + shared if keepdim else jnp.squeeze(extreme + shared, dim)


def cosine_similarity(x1: Vectors, x2: Vectors, dim: int = -1, eps: float = 1e-8) -> Vectors:
    """torch.nn.functional.cosine_similarity: x1 . x2 / (max(|x1|, eps) max(|x2|, eps)) along `dim`.

    `dim` counts the axes as they are here. torch's default 1 is its channel axis, which is last here. The bound `eps`
    does not stop the gradient of the norm, as in torch.
    """
    a, b = jnp.broadcast_arrays(x1, x2)
    return (_divided_by_norm(a, dim, eps) * _divided_by_norm(b, dim, eps)).sum(dim)


def _divided_by_norm(x: Vectors, dim: int, eps: float) -> Vectors:
    norm = vector_norm(x, 2.0, dim, True)
    fixed = jax.lax.stop_gradient(norm)
    return x / jnp.where(fixed < eps, eps + (norm - fixed), norm)


def pairwise_distance(
    x1: Vectors, x2: Vectors, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Vectors:
    """torch.nn.functional.pairwise_distance: the p-norm of x1 - x2 + eps along the last axis. (N, D), (D,)."""
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


def pdist(input: Float[Array, "n d"], p: float = 2.0) -> Float[Array, " pairs"]:
    """torch.nn.functional.pdist: the p-norm distance of every pair of rows i < j. (N, D) -> (N (N - 1) / 2,).

    Raises:
        UsageError: p below 0.
    """
    if p < 0:
        raise UsageError(f"p must be at least 0, not {p}")
    first, second = np.triu_indices(input.shape[0], 1)
    difference = input[first] - input[second]
    if not math.isinf(p):
        return vector_norm(difference, p)
    # torch gives each of equal largest differences the whole gradient here.
    size = absolute(difference)
    fixed = jax.lax.stop_gradient(size)
    largest = fixed.max(-1, keepdims=True)
    return largest[:, 0] + jnp.where(fixed == largest, size - fixed, 0).sum(-1)


def normalize(input: Vectors, p: float = 2.0, dim: int = -1, eps: float = 1e-12) -> Vectors:
    """torch.nn.functional.normalize: input / max(p-norm along `dim`, eps).

    `dim` counts the axes as they are here. torch's default 1 is its channel axis, which is last here.
    """
    norm = vector_norm(input, p, dim, True)
    return input / jnp.where(norm < eps, jnp.asarray(eps, norm.dtype), norm)


class CosineSimilarity(Module):
    """torch.nn.CosineSimilarity along `dim`, by default the last axis: torch's axis 1, the channels.

    (..., D), (..., D) -> (...).
    """

    def __init__(self, dim: int = -1, eps: float = 1e-8):
        self.dim, self.eps = dim, eps

    def __call__(self, x1: Vectors, x2: Vectors) -> Vectors:
        return cosine_similarity(x1, x2, self.dim, self.eps)


class PairwiseDistance(Module):
    """torch.nn.PairwiseDistance: the p-norm of x1 - x2 + eps. (N, D), (N, D) -> (N,), or (N, 1) with keepdim."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False):
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def __call__(self, x1: Vectors, x2: Vectors) -> Vectors:
        return pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)
