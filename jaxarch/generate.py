"""Text from a causal language model: greedy or sampled, with a key-value cache, compiled once.

Works with every model that has `init_cache(batch, max_len)` and `decode(ids, cache)`. A token is drawn by
inverting the cumulative distribution at a uniform number; torchref.generate draws the same token from the
same number. `translate` is the same for encoder-decoder models, greedy or with beams.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import state
from jaxarch.errors import DataError, UsageError
from jaxarch.nn.module import wide_dtype


def generate(
    model: Any,
    prompt_ids: Int[Array, "b t"],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: Array | None = None,
    uniforms: Float[Array, "b n"] | None = None,
    eos_token_id: int | None = None,
) -> Int[Array, "b m"]:
    """The prompts (B, T), continued by `max_new_tokens` tokens: (B, T + new).

    Temperature 0 takes the likeliest token. Otherwise tokens are sampled, among the `top_k` likeliest, then
    among the fewest whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751); tokens tied
    with the last of these stay. The draws come from `key`, or are given as `uniforms` (B, new) in [0, 1).
    After `eos_token_id` a row holds only that token.

    Raises:
        UsageError: a setting out of range, or one that has no effect.
        DataError: the prompt is empty, or is too long for the model with the new tokens.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    batch, length = prompt_ids.shape
    if length == 0:
        raise DataError("the prompt is empty: give at least one token")
    if temperature == 0:
        if key is not None or uniforms is not None:
            raise UsageError("temperature 0 is greedy: key and uniforms have no effect, set temperature")
        uniforms = jnp.zeros((batch, max_new_tokens))
    elif key is not None and uniforms is None:
        uniforms = jax.random.uniform(key, (batch, max_new_tokens))
    elif key is not None or uniforms is None:
        raise UsageError("sampling needs either key or uniforms")
    elif uniforms.shape != (batch, max_new_tokens):
        raise DataError(f"uniforms have shape {uniforms.shape}, needed is {(batch, max_new_tokens)}")
    jax.eval_shape(lambda: model.init_cache(batch, length + max_new_tokens))
    graph, params, rest = state.split(model)
    return _run(graph, float(temperature), top_k, top_p, eos_token_id, params, rest, prompt_ids, uniforms)


def check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
    """Refuse settings out of range, and those without effect.

    Raises:
        UsageError: naming the setting.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError(f"temperature must be 0 (greedy) or positive, not {temperature}")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p must be in (0, 1], not {top_p}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise UsageError("temperature 0 is greedy: top_k and top_p have no effect, set temperature")


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
    logits = logits.astype(wide_dtype(logits.dtype)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jnp.sort(logits)[:, -top_k, None]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None:
        falling = jnp.sort(logits, descending=True)
        p = jax.nn.softmax(falling)
        needed = jnp.cumsum(p, -1) - p < top_p
        least = jnp.where(needed, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    p = jax.nn.softmax(logits)
    total = jnp.cumsum(p, -1)
    tokens = (total <= uniforms[:, None].astype(p.dtype) * total[:, -1:]).sum(-1)
    # Rounding must not step past the last token that has any probability.
    last = p.shape[-1] - 1 - (p > 0)[:, ::-1].argmax(-1)
    return jnp.minimum(tokens, last)


def translate(
    model: Any,
    src_ids: Int[Array, "b s"],
    max_new_tokens: int,
    *,
    bos_token_id: int,
    eos_token_id: int,
    beam_size: int = 1,
    length_penalty: float = 0.0,
) -> Int[Array, "b n"]:
    """The likeliest targets of sources (B, S) by beam search: (B, max_new_tokens), padded after the end.

    The model has `encode(src)`, `init_cache(batch, max_len)`, `decode(ids, cache, memory, mask)` and
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never written before the end. Beams are ranked
    by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one keeps its
    place while its log p is among the best.

    Raises:
        UsageError: a setting out of range, or one that has no effect; the end is the padding.
        DataError: a source is empty or too long for the model, or `max_new_tokens` is.
    """
    check_beams(max_new_tokens, beam_size, length_penalty, eos_token_id, model.config.pad_token_id)
    if src_ids.shape[1] == 0:
        raise DataError("the source is empty: give at least one token")
    jax.eval_shape(lambda: model.init_cache(len(src_ids), max_new_tokens))
    graph, params, rest = state.split(model)
    settings = (beam_size, float(length_penalty), bos_token_id, eos_token_id, max_new_tokens)
    return _search(graph, *settings, params, rest, src_ids)


def check_beams(max_new_tokens: int, beam_size: int, length_penalty: float, eos: int, pad: int) -> None:
    """Refuse settings out of range, and those without effect.

    Raises:
        UsageError: naming the setting.
    """
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if beam_size < 1:
        raise UsageError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise UsageError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise UsageError("one beam has no rivals: length_penalty has no effect, set beam_size")
    if eos == pad:
        raise UsageError(
            f"eos_token_id {eos} is the model's pad_token_id: the end must be a token of its own"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _run(
    graph: nnx.GraphDef,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos: int | None,
    params: state.Flat,
    rest: state.Flat,
    prompt: Int[Array, "b t"],
    uniforms: Float[Array, "b n"],
) -> Int[Array, "b m"]:
    model: Any = state.merge(graph, params, rest)
    model.eval()
    (batch, length), new = prompt.shape, uniforms.shape[1]
    tail = jnp.full((batch, new), 0 if eos is None else eos, prompt.dtype)
    logits, cache = model.decode(prompt, model.init_cache(batch, length + new))
    decode_graph, *arrays = nnx.split(model)

    def step(carry):
        i, ids, last, cache, done = carry
        token = choose(last, uniforms[:, i], temperature, top_k, top_p).astype(prompt.dtype)
        if eos is not None:
            token = jnp.where(done, eos, token)
            done = done | (token == eos)
        ids = jax.lax.dynamic_update_slice(ids, token[:, None], (0, length + i))
        logits, cache = nnx.merge(decode_graph, *arrays).decode(token[:, None], cache)
        return i + 1, ids, logits[:, -1], cache, done

    def unfinished(carry):
        return (carry[0] < new) & ~carry[4].all()

    start = (0, jnp.concatenate((prompt, tail), 1), logits[:, -1], cache, jnp.zeros(batch, bool))
    return jax.lax.while_loop(unfinished, step, start)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _search(
    graph: nnx.GraphDef,
    beam: int,
    length_penalty: float,
    bos: int,
    eos: int,
    new: int,
    params: state.Flat,
    rest: state.Flat,
    src: Int[Array, "b s"],
) -> Int[Array, "b n"]:
    model: Any = state.merge(graph, params, rest)
    model.eval()
    batch, pad = len(src), model.config.pad_token_id
    memory, mask = (jnp.repeat(x, beam, 0) for x in model.encode(src))
    decode_graph, *arrays = nnx.split(model)

    def step(carry):
        i, ids, last, scores, lengths, done, cache = carry
        logits, cache = nnx.merge(decode_graph, *arrays).decode(last.reshape(-1, 1), cache, memory, mask)
        logits = logits[:, -1].astype(scores.dtype).reshape(batch, beam, -1)
        vocab = logits.shape[-1]
        padding = jnp.arange(vocab) == pad
        log_p = jax.nn.log_softmax(jnp.where(padding, -jnp.inf, logits))
        # A finished beam goes on in one way only, at no cost.
        log_p = jnp.where(done[..., None], jnp.where(padding, 0.0, -jnp.inf).astype(log_p.dtype), log_p)
        scores, best = jax.lax.top_k((scores[..., None] + log_p).reshape(batch, -1), beam)
        parent, token = best // vocab, (best % vocab).astype(src.dtype)
        ids, lengths, done = (_pick(x, parent) for x in (ids, lengths, done))
        rows = (jnp.arange(batch, dtype=parent.dtype)[:, None] * beam + parent).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows] if x.ndim else x, cache)
        ids = jax.lax.dynamic_update_slice(ids, token[..., None], (0, 0, i))
        return (
            i + 1,
            ids,
            token,
            scores,
            lengths + (~done).astype(lengths.dtype),
            done | (token == eos),
            cache,
        )

    def unfinished(carry):
        return (carry[0] < new) & ~carry[5].all()

    dtype = wide_dtype(memory.dtype)
    # All beams start alike: only the first counts, or they would stay alike.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf).astype(dtype), (batch, beam))
    start = (
        0,
        jnp.full((batch, beam, new), pad, src.dtype),
        jnp.full((batch, beam), bos, src.dtype),
        scores,
        jnp.zeros((batch, beam), jnp.int32),
        jnp.zeros((batch, beam), bool),
        model.init_cache(batch * beam, new),
    )
    _, ids, _, scores, lengths, _, _ = jax.lax.while_loop(unfinished, step, start)
    ranked = scores / ((5 + lengths.astype(dtype)) / 6) ** length_penalty
    return _pick(ids, ranked.argmax(-1)[:, None])[:, 0]


def _pick(x: Array, at: Int[Array, "b k"]) -> Array:
    """Of every row of x (B, K, ...) the entries `at`."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), 1)
