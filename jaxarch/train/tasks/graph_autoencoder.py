"""Graphs coded as one vector per node and built again. Kipf and Welling 2016, arXiv:1611.07308."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxarch import nn
from jaxarch.train.tasks import Batch, Task, Update


class GraphAutoencoder(nn.Module):
    """adjacency (B, N, N), real (B, N) -> the probability of each edge (B, N, N)."""

    def __init__(
        self, generator: nnx.Module, nodes: int, latent: int, hidden: int, pairwise: bool, rngs: nnx.Rngs
    ):
        self.generator, self.pairwise = generator, pairwise
        self.conv1 = nn.GCNConv(nodes, hidden, rngs=rngs)
        self.conv2 = nn.GCNConv(hidden, latent, rngs=rngs)
        self.own = nn.Linear(nodes, latent, rngs=rngs)
        self.activation = nn.Activation("relu")

    def encode(self, adjacency: Array) -> Array:
        """(B, N, latent); which number a node has is all that is known of it but its edges."""
        count, nodes = adjacency.shape[:2]
        x = jnp.tile(jnp.eye(nodes, dtype=adjacency.dtype), (count, 1))
        # Every pair is an edge, of weight 0 where the graph has none: so shapes are static.
        at = jnp.arange(count * nodes)
        source, target = jnp.repeat(at, nodes), (at.reshape(count, nodes)[:, None] + 0 * at[:nodes, None])
        edges, weight = jnp.stack([source, target.reshape(-1)]), adjacency.reshape(-1)
        # GCNConv takes weights given to loops for the loops'; without them every loop has weight 1.
        weight = jnp.where(edges[0] == edges[1], 1, weight)
        h = self.activation(self.conv1(x, edges, weight))
        z = self.conv2(h, edges, weight) + self.own(x)
        return z.reshape(count, nodes, -1)

    def __call__(self, adjacency: Array) -> Array:
        z = self.encode(adjacency)
        if not self.pairwise:
            return self.generator(z)
        # All nodes as seen from node i, z_i * z_j; of the pairs that they give, those of i itself.
        seen = self.generator(z[:, :, None] * z[:, None])
        return jnp.einsum("biij->bij", seen)


def make(nodes: int = 7, latent: int = 16, hidden: int = 128, pairwise: bool = False) -> Task:
    """Cross-entropy over pairs of different nodes, scored by the share of graphs that come back whole.

    Args:
        nodes: of every graph, with its padding.
        latent: the width of a node's code (the generator's latent_dim).
        hidden: the width of the encoder, two graph convolutions.
        pairwise: give the generator products of two codes. As it stands it adds a score of the one node and
            a score of the other, and can tell only graphs in which such sums decide.
    """

    def wrap(model: nnx.Module, sample: Batch, classes: int, rngs: nnx.Rngs) -> nnx.Module:
        return GraphAutoencoder(model, nodes, latent, hidden, pairwise, rngs)

    def pairs(batch: Batch) -> Array:
        both = batch["real"][:, :, None] & batch["real"][:, None]
        return both & ~jnp.eye(both.shape[-1], dtype=bool)

    def loss(model: Any, batch: Batch) -> Array:
        p, known = model(batch["adjacency"]), pairs(batch)
        right = jnp.where(batch["adjacency"] > 0, p, 1 - p)
        cost = -jnp.log(jnp.maximum(right, jnp.finfo(p.dtype).eps))
        return jnp.where(known, cost, 0).sum() / jnp.maximum(known.sum(), 1).astype(p.dtype)

    def tally(model: Any, batch: Batch) -> dict[str, Array]:
        counts = (batch["label"] != -100)[:, None, None]
        known, wanted = pairs(batch) & counts, batch["adjacency"] > 0
        wrong = known & ((model(batch["adjacency"]) > 0.5) != wanted)
        dtype = batch["adjacency"].dtype
        whole = counts[:, 0, 0] & ~wrong.any((1, 2))
        told = {"wrong": wrong, "edges": known & wanted, "pairs": known, "whole": whole, "graphs": counts}
        return {k: v.sum().astype(dtype) for k, v in told.items()}

    return Task(
        updates={"model": Update(loss=loss)}, tally=tally, summary=rebuilt, score=("whole", True), wrap=wrap
    )


def rebuilt(sums: Mapping[str, Any]) -> dict[str, Any]:
    """The share of pairs that are right, of those that the more frequent answer gets right, of whole graphs."""
    share = sums["edges"] / sums["pairs"]
    return {
        "pairs": 1 - sums["wrong"] / sums["pairs"],
        "pairs_majority": max(share, 1 - share),
        "whole": sums["whole"] / sums["graphs"],
    }
