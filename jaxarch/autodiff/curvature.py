"""Second derivatives without matrices: Hessian-vector products, Fisher's diagonal, the largest eigenvalue.

Parameters and directions are flat dictionaries by path; a loss is a function of such a dictionary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Flat = Mapping[str, Any]
Loss = Callable[[dict[str, Any]], Any]


def hvp(loss: Loss, params: Flat, vector: Flat) -> dict[str, Array]:
    """The Hessian of `loss` at `params` times `vector`: forward mode over reverse (Pearlmutter 1994)."""
    return jax.jvp(jax.grad(loss), (dict(params),), (dict(vector),))[1]


def fisher_diagonal(
    logits: Callable[[dict[str, Any], Any], Float[Array, "b c"]],
    params: Flat,
    x: Any,
    labels: Int[Array, " b"] | None = None,
) -> dict[str, Array]:
    """The diagonal of Fisher's information matrix of a classifier, the mean over rows (Kunstner et al. 2019).

    With `labels` the empirical one: the squared gradient of each row's log-probability of its label. Without,
    the true one: that of every class, weighted by the probability that the model gives it.

    Args:
        logits: (params, x) -> (B, C); rows must not depend on each other, so batch norm in eval mode.
    """

    def row(example: tuple[Array, Array | None]) -> dict[str, Array]:
        x, label = example

        def log_p(params: dict[str, Any]) -> Float[Array, " c"]:
            return jax.nn.log_softmax(logits(params, x[None])[0])

        if label is not None:
            return {k: g**2 for k, g in jax.grad(lambda p: log_p(p)[label])(dict(params)).items()}
        by_class = jax.jacrev(log_p)(dict(params))
        weights = jnp.exp(log_p(dict(params)))
        return {k: jnp.tensordot(weights, g**2, 1) for k, g in by_class.items()}

    # Row by row: the gradients of all rows at once may not fit in memory.
    return {k: v.mean(0) for k, v in jax.lax.map(row, (x, labels)).items()}


def top_eigenvalue(
    loss: Loss, params: Flat, start: Flat, *, steps: int = 50
) -> tuple[Array, dict[str, Array]]:
    """The Hessian's eigenvalue of largest magnitude and its eigenvector of length 1, by power iteration.

    Args:
        start: a direction that is not orthogonal to the eigenvector, such as a random one.
        steps: how many products; the error falls by the ratio of the two largest magnitudes with each, and
            the eigenvalue's by its square.
    """

    def advance(_: Any, vector: dict[str, Array]) -> dict[str, Array]:
        return normalised(hvp(loss, params, vector))

    vector = jax.lax.fori_loop(0, steps, advance, normalised(start))
    return dot(vector, hvp(loss, params, vector)), vector


class AutogradOptimizer:
    """The curvature of one loss, jitted: `hvp`, `top_eigenvalue` and, for a classifier, `fisher_diagonal`."""

    def __init__(self, loss: Loss, logits: Callable[[dict[str, Any], Any], Any] | None = None):
        self.hvp = jax.jit(lambda params, vector: hvp(loss, params, vector))
        self.top_eigenvalue = jax.jit(
            lambda params, start, steps=50: top_eigenvalue(loss, params, start, steps=steps),
            static_argnames="steps",
        )
        if logits is not None:
            self.fisher_diagonal = jax.jit(
                lambda params, x, labels=None: fisher_diagonal(logits, params, x, labels)
            )


def dot(a: Flat, b: Flat) -> Array:
    """The inner product of two flat dictionaries."""
    return jnp.stack([jnp.vdot(a[k], b[k]) for k in a]).sum()


def normalised(vector: Flat) -> dict[str, Array]:
    """A flat dictionary scaled to length 1; zeros stay zeros."""
    length = jnp.sqrt(dot(vector, vector))
    return {k: v / jnp.where(length > 0, length, 1).astype(v.dtype) for k, v in vector.items()}
