"""Decoding with a key-value cache, compiled once: sampling and beam search.

A token is drawn by inverting the cumulative distribution at a uniform number; torchref.decoding draws the same
token from the same number.

Prompts of unequal length are left-aligned (right-padded). The cache is filled for the longest and then set back
to the shortest: from there on every row takes the next token of its prompt while it has one, and then the
model's, so that all rows are at the same position and no position is shifted.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch import state
from jaxarch.nn import accumulation_dtype


class Sampling(NamedTuple):
    """How the next token is taken from the logits; see `generate`."""

    temperature: float
    top_k: int | None
    top_p: float | None


class Beams(NamedTuple):
    """How many beams there are, and how they are ranked; see `translate`."""

    size: int
    length_penalty: float


class Settings(NamedTuple):
    """What sampling and beam search share."""

    max_new_tokens: int
    repetition_penalty: float
    stop_tokens: tuple[int, ...]
    pad_token: int  # what a row holds after its end
    banned_token: int | None  # never generated


def choose(
    logits: Float[Array, "b v"],
    uniforms: Float[Array, " b"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " b"]:
    """One token per row: the likeliest at temperature 0, else drawn as `generate` says."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.astype(accumulation_dtype(logits.dtype)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = jnp.sort(logits)[:, -top_k, None]
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    if top_p is not None:
        descending = jnp.sort(logits, descending=True)
        p = jax.nn.softmax(descending)
        in_nucleus = jnp.cumsum(p, -1) - p < top_p
        threshold = jnp.where(in_nucleus, descending, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    p = jax.nn.softmax(logits)
    total = jnp.cumsum(p, -1)
    tokens = (total <= uniforms[:, None].astype(p.dtype) * total[:, -1:]).sum(-1)
    # Rounding must not step past the last token that has any probability.
    last = p.shape[-1] - 1 - (p > 0)[:, ::-1].argmax(-1)
    return jnp.minimum(tokens, last)


def penalize(
    logits: Float[Array, "b v"], ids: Int[Array, "b m"], valid: Bool[Array, "#b m"], penalty: float
) -> Float[Array, "b v"]:
    """Logits, lower where a token is among the `valid` ids of its row; see `generate`."""
    if penalty == 1:
        return logits
    rows = jnp.arange(len(ids))[:, None]
    occurs = jnp.zeros(logits.shape, bool).at[rows, ids].max(jnp.broadcast_to(valid, ids.shape))
    return jnp.where(occurs, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def sample(
    graph: nnx.GraphDef,
    settings: Settings,
    sampling: Sampling,
    params: state.Flat,
    rest: state.Flat,
    prompt: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    uniforms: Float[Array, "b n"],
    src: Int[Array, "b s"] | None,
) -> Int[Array, "b m"]:
    """The prompts, each continued from its length by tokens taken one by one; `src` is for encoder-decoders."""
    model: Any = state.merge(graph, params, rest)
    model.eval()
    prompt_len, new = prompt.shape[1], settings.max_new_tokens
    memory = () if src is None else model.encode(src)
    shortest = lengths.min()
    # The last token is generated but never decoded.
    cache = prefill(model, prompt, shortest, prompt_len + new - 1, *memory)
    decode_graph, *arrays = nnx.split(model)
    positions = jnp.arange(prompt_len + new, dtype=lengths.dtype)

    def step(carry: tuple[Array, Array, Any, Array]) -> tuple[Array, Array, Any, Array]:
        i, ids, cache, done = carry
        last = jax.lax.dynamic_slice_in_dim(ids, i - 1, 1, 1)
        logits, cache = nnx.merge(decode_graph, *arrays).decode(last, cache, *memory)
        logits = penalize(logits[:, -1], ids, (positions < i)[None], settings.repetition_penalty)
        index = jnp.clip(i - lengths, 0, new - 1)
        uniform = jnp.take_along_axis(uniforms, index[:, None], 1)[:, 0]
        token = choose(ban(logits, settings.banned_token), uniform, *sampling)
        token = jnp.where(done | (i >= lengths + new), settings.pad_token, token.astype(ids.dtype))
        in_prompt = i < lengths
        done = done | (~in_prompt & is_stop(token, settings.stop_tokens))
        token = jnp.where(in_prompt, jax.lax.dynamic_slice_in_dim(ids, i, 1, 1)[:, 0], token)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], i, 1)
        return i + 1, ids, cache, done

    def unfinished(carry: tuple[Array, Array, Any, Array]) -> Array:
        i, _, _, done = carry
        return ~(done | (i >= lengths + new)).all()

    start = (shortest, with_room(prompt, settings), cache, jnp.zeros(len(prompt), bool))
    return jax.lax.while_loop(unfinished, step, start)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def beam_search(
    graph: nnx.GraphDef,
    settings: Settings,
    beams: Beams,
    params: state.Flat,
    rest: state.Flat,
    prompt: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    src: Int[Array, "b s"] | None,
) -> Int[Array, "b m"]:
    """The prompts, each continued from its length by its best beam; `src` is for encoder-decoders."""
    model: Any = state.merge(graph, params, rest)
    model.eval()
    (batch, prompt_len), new, beam = prompt.shape, settings.max_new_tokens, beams.size
    memory = () if src is None else model.encode(src)
    shortest = lengths.min()
    cache = prefill(model, prompt, shortest, prompt_len + new - 1, *memory)
    memory, cache = (
        jax.tree.map(lambda x: jnp.repeat(x, beam, 0) if x.ndim else x, t) for t in (memory, cache)
    )
    decode_graph, *arrays = nnx.split(model)
    ids = jnp.repeat(with_room(prompt, settings)[:, None], beam, 1)
    positions, ends = jnp.arange(prompt_len + new, dtype=lengths.dtype), lengths + new
    dtype = accumulation_dtype(jax.tree.leaves(params)[0].dtype)

    def step(carry: tuple[Array, Array, Array, Array, Array, Any]) -> tuple[Any, ...]:
        i, ids, scores, counts, done, cache = carry
        last = jax.lax.dynamic_slice_in_dim(ids, i - 1, 1, 2)
        logits, cache = nnx.merge(decode_graph, *arrays).decode(last.reshape(-1, 1), cache, *memory)
        rows, logits = ids.reshape(batch * beam, -1), logits[:, -1].astype(dtype)
        logits = penalize(logits, rows, (positions < i)[None], settings.repetition_penalty)
        vocab = jnp.arange(logits.shape[-1])
        log_p = jax.nn.log_softmax(ban(logits, settings.banned_token)).reshape(batch, beam, -1)
        # A finished beam continues in one way only, at no cost.
        ended = done | (i >= ends)[:, None]
        padding = jnp.where(vocab == settings.pad_token, 0.0, -jnp.inf).astype(dtype)
        log_p = jnp.where(ended[..., None], padding, log_p)
        best, index = jax.lax.top_k((scores[..., None] + log_p).reshape(batch, -1), beam)
        parent, token = index // len(vocab), (index % len(vocab)).astype(ids.dtype)
        # Within a prompt every beam takes the prompt's token.
        in_prompt = (i < lengths)[:, None]
        parent = jnp.where(in_prompt, jnp.arange(beam, dtype=parent.dtype), parent)
        token = jnp.where(in_prompt, jax.lax.dynamic_slice_in_dim(ids, i, 1, 2)[..., 0], token)
        scores = jnp.where(in_prompt, scores, best)
        ids, counts, done, ended = (gather(x, parent) for x in (ids, counts, done, ended))
        rows = (jnp.arange(batch, dtype=parent.dtype)[:, None] * beam + parent).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows] if x.ndim else x, cache)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[..., None], i, 2)
        counts = counts + (~ended & ~in_prompt).astype(counts.dtype)
        done = done | (~in_prompt & is_stop(token, settings.stop_tokens))
        return i + 1, ids, scores, counts, done, cache

    def unfinished(carry: tuple[Array, Array, Array, Array, Array, Any]) -> Array:
        i, _, _, _, done, _ = carry
        return ~(done | (i >= ends)[:, None]).all()

    # All beams start equal: only the first counts, or they would stay equal.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf).astype(dtype), (batch, beam))
    counts, done = jnp.zeros((batch, beam), jnp.int32), jnp.zeros((batch, beam), bool)
    carry = jax.lax.while_loop(unfinished, step, (shortest, ids, scores, counts, done, cache))
    _, ids, scores, counts, _, _ = carry
    ranked = scores / ((5 + counts.astype(dtype)) / 6) ** beams.length_penalty
    return gather(ids, ranked.argmax(-1)[:, None])[:, 0]


def prefill(
    model: Any, prompt: Int[Array, "b t"], shortest: Int[Array, ""], max_len: int, *memory: Array
) -> Any:
    """A cache that holds the prompts up to the last token of the shortest, which is decoded next."""
    cache = model.init_cache(len(prompt), max_len)
    if prompt.shape[1] > 1:
        _, cache = model.decode(prompt[:, :-1], cache, *memory)
    return tuple(layer._replace(length=(shortest - 1).astype(layer.length.dtype)) for layer in cache)


def with_room(prompt: Int[Array, "b t"], settings: Settings) -> Int[Array, "b m"]:
    """The prompts, padded for the tokens to be generated."""
    return jnp.pad(prompt, ((0, 0), (0, settings.max_new_tokens)), constant_values=settings.pad_token)


def ban(logits: Float[Array, "b v"], token: int | None) -> Float[Array, "b v"]:
    """Logits that are minus infinity at `token`."""
    if token is None:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) == token, -jnp.inf, logits)


def is_stop(token: Int[Array, "*b"], stop_tokens: tuple[int, ...]) -> Bool[Array, "*b"]:
    """Whether each token is among the stop tokens."""
    return functools.reduce(jnp.logical_or, (token == s for s in stop_tokens), jnp.zeros(token.shape, bool))


def gather(x: Array, index: Int[Array, "b k"]) -> Array:
    """Of every row of x (B, K, ...) the entries at `index`."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), 1)
