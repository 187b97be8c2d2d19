"""Adaptive softmax: few frequent classes in a head, the others in clusters of lower rank."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.activation import log_softmax
from jaxarch.nn.containers import ModuleList, Sequential
from jaxarch.nn.embedding import check_ids
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module


class AdaptiveOutput(NamedTuple):
    """The log-probability of each example's target, and the mean of their negatives."""

    output: Float[Array, "*batch"]
    loss: Float[Array, ""]


class AdaptiveLogSoftmaxWithLoss(Module):
    """Log-probabilities of many classes, sorted by falling frequency (Grave et al. 2017, arXiv:1609.04309).

    input (B, in_features) and target (B,), or one example without B -> (output, loss). Classes below cutoffs[0] are
    in the head; cluster i is of rank in_features // div_value^(i + 1). Unlike torch's, every cluster is computed for
    every example, so that shapes do not depend on the targets.

    Raises:
        UsageError: cutoffs that do not rise strictly between 0 and n_classes.
        DataError: in the call, inputs and targets that do not fit, or a target out of range.
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        bounds = (0, *cutoffs, n_classes)
        if not cutoffs or any(a >= b or b != int(b) for a, b in itertools.pairwise(bounds)):
            raise UsageError(f"cutoffs {list(cutoffs)} must be integers that rise between 0 and {n_classes}")
        self.in_features, self.n_classes, self.cutoffs = in_features, n_classes, bounds[1:]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = bounds[1], len(cutoffs)
        self.head_size = self.shortlist_size + self.n_clusters
        self.head = Linear(in_features, self.head_size, head_bias, rngs=rngs)
        self.tail = ModuleList()
        for i in range(self.n_clusters):
            rank, size = int(in_features // div_value ** (i + 1)), self.cutoffs[i + 1] - self.cutoffs[i]
            projection = Linear(in_features, rank, bias=False, rngs=rngs)
            self.tail.append(Sequential(projection, Linear(rank, size, bias=False, rngs=rngs)))

    def __call__(self, input_: Float[Array, "*batch i"], target_: Int[Array, "*batch"]) -> AdaptiveOutput:
        input, target = input_, target_  # torch's names
        if target.ndim > 1 or input.shape != (*target.shape, self.in_features):
            raise DataError(
                f"targets (B,) and inputs (B, {self.in_features}) or both without B, "
                f"not {target.shape} and {input.shape}"
            )
        check_ids(target, self.n_classes, "target")
        places = jnp.atleast_1d(target)[:, None]
        log_probs = self.log_prob(jnp.atleast_2d(input))
        output = log_probs.at[jnp.arange(len(places))[:, None], places].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        output = output.reshape(target.shape)
        return AdaptiveOutput(output, -output.mean())

    def log_prob(self, input: Float[Array, "b i"]) -> Float[Array, "b classes"]:
        """The log-probability of every class: (B, in_features) -> (B, n_classes)."""
        return self._of_all(input, self.head(input))

    def predict(self, input: Float[Array, "b i"]) -> Int[Array, " b"]:
        """The most probable class: (B, in_features) -> (B,). A class that wins in the head wins, as in torch."""
        head = self.head(input)
        of_head = head.argmax(1)
        of_all = self._of_all(input, head).argmax(1)
        return jnp.where(of_head < self.shortlist_size, of_head, of_all)

    def _of_all(self, input: Float[Array, "b i"], head: Float[Array, "b h"]) -> Float[Array, "b classes"]:
        of_head = log_softmax(head)
        parts = [of_head[:, : self.shortlist_size]]
        for i, cluster in enumerate(self.tail):
            parts.append(log_softmax(cluster(input)) + of_head[:, self.shortlist_size + i, None])
        return jnp.concatenate(parts, 1)
