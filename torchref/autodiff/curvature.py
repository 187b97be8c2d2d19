"""Second derivatives without matrices: Hessian-vector products, Fisher's diagonal, the largest eigenvalue.

Parameters and directions are flat dictionaries by path; a loss is a function of such a dictionary, such as
`lambda p: loss_fn(torch.func.functional_call(model, p, x))`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Flat = Mapping[str, Any]
Loss = Callable[[dict[str, Any]], Any]


def hvp(loss: Loss, params: Flat, vector: Flat) -> dict[str, Tensor]:
    """The Hessian of `loss` at `params` times `vector`: reverse mode twice."""
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    gradients = torch.autograd.grad(
        loss(leaves), list(leaves.values()), create_graph=True, materialize_grads=True
    )
    slope = torch.stack([(g * vector[k]).sum() for k, g in zip(leaves, gradients, strict=True)]).sum()
    grads = torch.autograd.grad(slope, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def fisher_diagonal(
    logits: Callable[[dict[str, Any], Any], Tensor], params: Flat, x: Any, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """The diagonal of Fisher's information matrix of a classifier, the mean over rows (Kunstner et al. 2019).

    With `labels` the empirical one: the squared gradient of each row's log-probability of its label. Without,
    the true one: that of every class, weighted by the probability that the model gives it.

    Args:
        logits: (params, x) -> (B, C); rows must not depend on each other, so batch norm in eval mode.
    """
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    total = {k: torch.zeros_like(v) for k, v in params.items()}
    for i in range(len(x)):
        log_p = logits(leaves, x[i : i + 1])[0].log_softmax(0)
        for label in range(len(log_p)) if labels is None else [int(labels[i])]:
            weight = log_p[label].detach().exp() if labels is None else 1.0
            grads = torch.autograd.grad(
                log_p[label], list(leaves.values()), retain_graph=True, materialize_grads=True
            )
            for k, gradient in zip(leaves, grads, strict=True):
                total[k] += weight * gradient**2
    return {k: v / len(x) for k, v in total.items()}


def top_eigenvalue(
    loss: Loss, params: Flat, start: Flat, *, steps: int = 50
) -> tuple[Tensor, dict[str, Tensor]]:
    """The Hessian's eigenvalue of largest magnitude and its eigenvector of length 1, by power iteration.

    Args:
        start: a direction that is not orthogonal to the eigenvector, such as a random one.
        steps: how many products; the error falls by the ratio of the two largest magnitudes with each, and
            the eigenvalue's by its square.
    """
    vector = normalised(start)
    for _ in range(steps):
        vector = normalised(hvp(loss, params, vector))
    return dot(vector, hvp(loss, params, vector)), vector


class AutogradOptimizer:
    """The curvature of one loss: `hvp`, `top_eigenvalue` and, for a classifier, `fisher_diagonal`."""

    def __init__(self, loss: Loss, logits: Callable[[dict[str, Any], Any], Any] | None = None):
        self.hvp = lambda params, vector: hvp(loss, params, vector)
        self.top_eigenvalue = lambda params, start, steps=50: top_eigenvalue(loss, params, start, steps=steps)
        if logits is not None:
            self.fisher_diagonal = lambda params, x, labels=None: fisher_diagonal(logits, params, x, labels)


def dot(a: Flat, b: Flat) -> Tensor:
    """The inner product of two flat dictionaries."""
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def normalised(vector: Flat) -> dict[str, Tensor]:
    """A flat dictionary scaled to length 1; zeros stay zeros."""
    length = dot(vector, vector).sqrt()
    return {k: v / torch.where(length > 0, length, 1.0) for k, v in vector.items()}
