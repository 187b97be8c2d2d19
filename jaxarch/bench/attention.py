"""`jaxarch bench attention`: one forward pass of each kind of self-attention against the length, up to 16,384.

Batch 1, width 64, two heads, float32. Only `full` and `chunked` compute the same function; so only times are
compared.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn, state
from jaxarch.bench import Contest
from jaxarch.nn.long_attention import join_heads, split_heads

Weights = tuple[state.Flat, state.Flat]  # parameters, remaining state

WIDTH, HEADS, CHUNK = 64, 2, 512
LENGTHS = (1024, 2048, 4096, 8192, 16384)
LAYERS: dict[str, Callable[..., Any]] = {
    "full": nn.MultiHeadAttention,
    "chunked": nn.MultiHeadAttention,
    "local": functools.partial(nn.MultiHeadAttention, attention_type="local", max_relative_position=64),
    "sparse": functools.partial(nn.MultiHeadAttention, attention_type="sparse", max_relative_position=128),
    "performer": functools.partial(nn.PerformerAttention, n_features=128),
    "performer causal": functools.partial(nn.PerformerAttention, n_features=128, causal=True),
    "linformer": functools.partial(nn.LinformerAttention, proj_len=128, max_len=LENGTHS[-1]),
    "reformer": functools.partial(nn.ReformerAttention, bucket_size=64, n_hashes=2, max_len=LENGTHS[-1]),
}


def contests(*, compiled: bool) -> Iterator[Contest]:
    """One contest for each length."""
    for length in LENGTHS:
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, WIDTH)), jnp.float32)
        yield Contest(f"attention {length}", {name: run(name, x) for name in LAYERS})


def run(name: str, x: Float[Array, "b t d"]) -> Callable[[], None]:
    """A jitted forward pass, as a zero-argument callable."""
    call, weights = forward(name)
    jitted = jax.jit(call)

    def once() -> None:
        jax.block_until_ready(jitted(weights, x))

    return once


def forward(name: str) -> tuple[Callable[[Weights, Array], Array], Weights]:
    """(weights, x) -> y of a layer in eval mode, and its weights."""
    layer = LAYERS[name](WIDTH, HEADS, dropout=0.0, rngs=nnx.Rngs(0))
    layer.eval()
    graph, params, rest = state.split(layer)

    def call(weights: Weights, x: Array) -> Array:
        merged: Any = state.merge(graph, *weights)
        return chunked(merged, x) if name == "chunked" else merged(x)

    return call, (params, rest)


def chunked(layer: nn.MultiHeadAttention, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Full attention with one chunk of the scores in memory at a time."""
    q, k, v = (split_heads(project(x), HEADS) for project in (layer.w_q, layer.w_k, layer.w_v))
    return layer.w_o(join_heads(nn.chunked_attention(q, k, v, chunk_size=CHUNK)))
