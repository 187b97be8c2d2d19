"""Graphs encoded as one vector per node and reconstructed. Kipf and Welling 2016, arXiv:1611.07308."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxarch import nn
from jaxarch.train.tasks import Batch, Score, Task, Update, valid_rows


class GraphAutoencoder(nn.Module):
    """adjacency (B, N, N), real (B, N) -> the probability of each edge (B, N, N)."""

    def __init__(
        self, generator: nnx.Module, nodes: int, latent: int, hidden: int, pairwise: bool, rngs: nnx.Rngs
    ):
        self.generator: Any = generator
        self.pairwise = pairwise
        self.conv1 = nn.GCNConv(nodes, hidden, rngs=rngs)
        self.conv2 = nn.GCNConv(hidden, latent, rngs=rngs)
        self.own = nn.Linear(nodes, latent, rngs=rngs)
        self.activation = nn.Activation("relu")

    def encode(self, adjacency: Float[Array, "b n n"]) -> Float[Array, "b n d"]:
        """(B, N, latent); a node's only feature is its number, one-hot."""
        count, nodes = adjacency.shape[:2]
        x = jnp.tile(jnp.eye(nodes, dtype=adjacency.dtype), (count, 1))
        # Every pair is an edge, of weight 0 where the graph has none: so shapes are static.
        index = jnp.arange(count * nodes)
        source = jnp.repeat(index, nodes)
        target = index.reshape(count, nodes)[:, None] + 0 * index[:nodes, None]
        edges, weight = jnp.stack([source, target.reshape(-1)]), adjacency.reshape(-1)
        # GCNConv takes weights given to loops for the loops'; without them every loop has weight 1.
        weight = jnp.where(edges[0] == edges[1], 1, weight)
        h = self.activation(self.conv1(x, edges, weight))
        z = self.conv2(h, edges, weight) + self.own(x)
        return z.reshape(count, nodes, -1)

    def __call__(self, adjacency: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
        z = self.encode(adjacency)
        if not self.pairwise:
            return self.generator(z)[1]
        # The generator is given z_i * z_j for all j, once for each node i; of its pairs row i is used.
        _, products = self.generator(z[:, :, None] * z[:, None])
        return jnp.einsum("biij->bij", products)


def make(nodes: int = 7, latent: int = 16, hidden: int = 128, pairwise: bool = False) -> Task:
    """Cross-entropy over pairs of different nodes, scored by the share of graphs reconstructed without an error.

    Args:
        nodes: of every graph, with its padding.
        latent: the width of a node's code (the generator's latent_dim).
        hidden: the width of the encoder, two graph convolutions.
        pairwise: give the generator products of two codes. As it stands it adds a score of the one node and
            a score of the other, and can tell only graphs in which such sums decide.
    """

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return GraphAutoencoder(model, nodes, latent, hidden, pairwise, rngs)

    return Task(
        updates={"model": Update(loss=loss)},
        tally=tally,
        summary=summary,
        score=Score("whole", higher_is_better=True),
        wrap=wrap,
    )


def pairs_of(batch: Batch) -> Bool[Array, "b n n"]:
    """True for pairs of two different nodes, neither of them padding."""
    both = batch["real"][:, :, None] & batch["real"][:, None]
    return both & ~jnp.eye(both.shape[-1], dtype=bool)


def loss(model: Any, batch: Batch) -> Float[Array, ""]:
    """The mean cross-entropy of a pair."""
    p, pairs = model(batch["adjacency"]), pairs_of(batch)
    likelihood = jnp.where(batch["adjacency"] > 0, p, 1 - p)
    cost = -jnp.log(jnp.maximum(likelihood, jnp.finfo(p.dtype).eps))
    return jnp.where(pairs, cost, 0).sum() / jnp.maximum(pairs.sum(), 1).astype(p.dtype)


def tally(model: Any, batch: Batch) -> dict[str, Array]:
    """Numbers of pairs, of edges among them, of wrong pairs, of graphs and of those without a wrong pair."""
    valid = valid_rows(batch)
    pairs, edges = pairs_of(batch) & valid[:, None, None], batch["adjacency"] > 0
    wrong = pairs & ((model(batch["adjacency"]) > 0.5) != edges)
    whole = valid & ~wrong.any((1, 2))
    counts = {"wrong": wrong, "edges": pairs & edges, "pairs": pairs, "whole": whole, "graphs": valid}
    return {k: v.sum().astype(batch["adjacency"].dtype) for k, v in counts.items()}


def summary(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The share of right pairs, that of the most frequent answer, and the share of graphs without an error."""
    share = sums["edges"] / sums["pairs"]
    return {
        "pairs": 1 - sums["wrong"] / sums["pairs"],
        "pairs_majority": max(share, 1 - share),
        "whole": sums["whole"] / sums["graphs"],
    }
