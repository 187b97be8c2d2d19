"""Text from a transformer: greedy, sampled or by beams, with a key-value cache, compiled once.

`generate` works with every model that has `init_cache(batch, max_len)`, `decode(ids, cache)` and
`config.vocab_size`, `translate` with encoder-decoder models. A token is drawn by inverting the cumulative
distribution at a uniform number; torchref.generate draws the same token from the same number.

Prompts of unequal length stand at the left. The cache is filled for the longest and then set back to the
shortest: from there on every row takes its own token where it has one, and the next of the model where it
has none, so that all rows are at the same position and no position is shifted.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch import state
from jaxarch.errors import DataError, UsageError
from jaxarch.nn import check_ids
from jaxarch.nn.module import wide_dtype


class Sampling(NamedTuple):
    """How the next token is taken from the logits; see `generate`."""

    temperature: float
    top_k: int | None
    top_p: float | None


class Beams(NamedTuple):
    """How many beams there are, and how they are ranked; see `translate`."""

    size: int
    length_penalty: float


class Text(NamedTuple):
    """What all ways of decoding share."""

    new: int
    repetition_penalty: float
    stops: tuple[int, ...]
    fill: int  # what a row holds after its end
    banned: int | None  # a token that is never written


def generate(
    model: Any,
    prompt_ids: Int[Array, "b t"],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    key: Array | None = None,
    uniforms: Float[Array, "b n"] | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    lengths: Int[Array, " b"] | None = None,
) -> Int[Array, "b m"]:
    """The prompts (B, T), continued by `max_new_tokens` tokens: (B, T + new).

    Temperature 0 takes the likeliest token. Otherwise tokens are sampled, among the `top_k` likeliest, then
    among the fewest whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751); tokens tied
    with the last of these stay. The draws come from `key`, or are given as `uniforms` (B, new) in [0, 1).
    `repetition_penalty` divides the positive logits of tokens that the row holds and multiplies the negative
    ones, before all else (Keskar et al. 2019, arXiv:1909.05858). `beam_size` above 1 searches as
    `translate` does. `eos_token_id` is one token that ends a row, or several. `lengths` (B,) says where
    prompts of unequal length end; each goes on right there. After its end a row holds the first of the
    `eos_token_id`, or 0 if there is none.

    Raises:
        UsageError: a setting out of range, or one that has no effect.
        DataError: a prompt is empty, or too long for the model with the new tokens; ids outside the
            vocabulary; lengths or uniforms that do not fit.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, repetition_penalty, beam_size, length_penalty)
    stops = check_stops(eos_token_id, model.config.vocab_size)
    batch, width = prompt_ids.shape
    if width == 0:
        raise DataError("the prompt is empty: give at least one token")
    if lengths is not None:
        lengths = check_lengths(lengths, batch, width)
        real = jnp.arange(width, dtype=lengths.dtype) < lengths[:, None]
        prompt_ids = jnp.where(real, prompt_ids, stops[0] if stops else 0)
    check_ids(prompt_ids, model.config.vocab_size, "token")
    uniforms = check_draws(temperature, key, uniforms, (batch, max_new_tokens))
    jax.eval_shape(lambda: model.init_cache(batch, width + max_new_tokens))
    graph, params, rest = state.split(model)
    text = Text(max_new_tokens, float(repetition_penalty), stops, stops[0] if stops else 0, None)
    lengths = jnp.full(batch, width, jnp.int32) if lengths is None else lengths
    if beam_size > 1:
        beams = Beams(beam_size, float(length_penalty))
        return _search(graph, text, beams, params, rest, prompt_ids, lengths, None)
    sampling = Sampling(float(temperature), top_k, top_p)
    return _sample(graph, text, sampling, params, rest, prompt_ids, lengths, uniforms, None)


def translate(
    model: Any,
    src_ids: Int[Array, "b s"],
    max_new_tokens: int,
    *,
    bos_token_id: int,
    eos_token_id: int,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: Array | None = None,
    uniforms: Float[Array, "b n"] | None = None,
) -> Int[Array, "b n"]:
    """The likeliest targets of sources (B, S) by beam search: (B, max_new_tokens), padded after the end.

    The model has `encode(src)`, `init_cache(batch, max_len)`, `decode(ids, cache, memory, mask)` and
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never written before the end. Beams are ranked
    by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one keeps its
    place while its log p is among the best. With a `temperature` targets are sampled, as `generate` does.

    Raises:
        UsageError: a setting out of range, or one that has no effect; the end is the padding.
        DataError: a source is empty or too long for the model, or `max_new_tokens` is.
    """
    pad = model.config.pad_token_id
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, 1.0, beam_size, length_penalty)
    if eos_token_id == pad:
        raise UsageError(
            f"eos_token_id {pad} is the model's pad_token_id: the end must be a token of its own"
        )
    if src_ids.shape[1] == 0:
        raise DataError("the source is empty: give at least one token")
    check_ids(src_ids, model.config.vocab_size, "token")
    uniforms = check_draws(temperature, key, uniforms, (len(src_ids), max_new_tokens))
    jax.eval_shape(lambda: model.init_cache(len(src_ids), max_new_tokens))
    graph, params, rest = state.split(model)
    text = Text(max_new_tokens, 1.0, (eos_token_id,), pad, pad)
    prompt = jnp.full((len(src_ids), 1), bos_token_id, src_ids.dtype)
    lengths = jnp.ones(len(src_ids), jnp.int32)
    if temperature > 0:
        sampling = Sampling(float(temperature), top_k, top_p)
        return _sample(graph, text, sampling, params, rest, prompt, lengths, uniforms, src_ids)[:, 1:]
    beams = Beams(beam_size, float(length_penalty))
    return _search(graph, text, beams, params, rest, prompt, lengths, src_ids)[:, 1:]


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


def check_search(
    temperature: float, repetition_penalty: float, beam_size: int, length_penalty: float
) -> None:
    """Refuse settings out of range, and those that contradict.

    Raises:
        UsageError: naming the setting.
    """
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise UsageError(f"repetition_penalty must be positive (1 is none), not {repetition_penalty}")
    if beam_size < 1:
        raise UsageError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise UsageError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise UsageError("one beam has no rivals: length_penalty has no effect, set beam_size")
    if beam_size > 1 and temperature > 0:
        raise UsageError("beams draw nothing: temperature contradicts beam_size, set one")


def check_stops(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end a row.

    Raises:
        UsageError: one is outside the vocabulary.
    """
    given = () if eos_token_id is None else eos_token_id
    stops = (given,) if isinstance(given, int) else tuple(int(token) for token in given)
    for token in stops:
        if not 0 <= token < vocab_size:
            raise UsageError(f"eos_token_id {token} is not in [0, {vocab_size})")
    return stops


def check_lengths(lengths: Array, batch: int, width: int) -> Int[Array, " b"]:
    """How many tokens each prompt has.

    Raises:
        DataError: another shape, or a length outside [1, T].
    """
    given = np.asarray(lengths)
    if given.shape != (batch,) or given.dtype.kind not in "iu":
        raise DataError(f"lengths must be {batch} integers, not {given.dtype} of shape {given.shape}")
    if given.size and not (given.min() >= 1 and given.max() <= width):
        raise DataError(f"lengths must be in [1, {width}], not {given.tolist()}")
    return jnp.asarray(given, jnp.int32)


def check_draws(
    temperature: float, key: Array | None, uniforms: Array | None, shape: tuple[int, int]
) -> Float[Array, "b n"]:
    """The uniform numbers that tokens are drawn with: given, or from the key; zeros where nothing is drawn.

    Raises:
        UsageError: not exactly one of the two, or one without effect.
        DataError: uniforms of another shape.
    """
    if temperature == 0:
        if key is not None or uniforms is not None:
            raise UsageError("temperature 0 is greedy: key and uniforms have no effect, set temperature")
        return jnp.zeros(shape)
    if key is not None and uniforms is None:
        return jax.random.uniform(key, shape)
    if key is not None or uniforms is None:
        raise UsageError("sampling needs either key or uniforms")
    if uniforms.shape != shape:
        raise DataError(f"uniforms have shape {uniforms.shape}, needed is {shape}")
    return uniforms


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


def penalize(
    logits: Float[Array, "b v"], ids: Int[Array, "b m"], written: Bool[Array, "#b m"], penalty: float
) -> Float[Array, "b v"]:
    """Logits, lower where a token is among the `written` of the ids of its row; see `generate`."""
    if penalty == 1:
        return logits
    rows = jnp.arange(len(ids))[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, ids].max(jnp.broadcast_to(written, ids.shape))
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _sample(
    graph: nnx.GraphDef,
    text: Text,
    sampling: Sampling,
    params: state.Flat,
    rest: state.Flat,
    prompt: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    uniforms: Float[Array, "b n"],
    src: Int[Array, "b s"] | None,
) -> Int[Array, "b m"]:
    model: Any = state.merge(graph, params, rest)
    model.eval()
    width, new = prompt.shape[1], text.new
    memory = () if src is None else model.encode(src)
    first = lengths.min()
    # The last token is written and not read again.
    cache = _filled(model, prompt, first, width + new - 1, *memory)
    decode_graph, *arrays = nnx.split(model)
    places = jnp.arange(width + new, dtype=lengths.dtype)

    def step(carry):
        i, ids, cache, done = carry
        last = jax.lax.dynamic_slice_in_dim(ids, i - 1, 1, 1)
        logits, cache = nnx.merge(decode_graph, *arrays).decode(last, cache, *memory)
        logits = _allowed(penalize(logits[:, -1], ids, (places < i)[None], text.repetition_penalty), text)
        at = jnp.clip(i - lengths, 0, new - 1)
        token = choose(logits, jnp.take_along_axis(uniforms, at[:, None], 1)[:, 0], *sampling)
        token = jnp.where(done | (i >= lengths + new), text.fill, token.astype(ids.dtype))
        given = i < lengths
        done = done | (~given & _among(token, text.stops))
        token = jnp.where(given, jax.lax.dynamic_slice_in_dim(ids, i, 1, 1)[:, 0], token)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], i, 1)
        return i + 1, ids, cache, done

    def unfinished(carry):
        return ~(carry[3] | (carry[0] >= lengths + new)).all()

    start = (first, _start(prompt, text), cache, jnp.zeros(len(prompt), bool))
    return jax.lax.while_loop(unfinished, step, start)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(
    graph: nnx.GraphDef,
    text: Text,
    beams: Beams,
    params: state.Flat,
    rest: state.Flat,
    prompt: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    src: Int[Array, "b s"] | None,
) -> Int[Array, "b m"]:
    model: Any = state.merge(graph, params, rest)
    model.eval()
    (batch, width), new, beam = prompt.shape, text.new, beams.size
    memory = () if src is None else model.encode(src)
    first = lengths.min()
    cache = _filled(model, prompt, first, width + new - 1, *memory)
    memory, cache = (
        jax.tree.map(lambda x: jnp.repeat(x, beam, 0) if x.ndim else x, t) for t in (memory, cache)
    )
    decode_graph, *arrays = nnx.split(model)
    ids = jnp.repeat(_start(prompt, text)[:, None], beam, 1)
    places, ends = jnp.arange(width + new, dtype=lengths.dtype), lengths + new
    dtype = wide_dtype(jax.tree.leaves(params)[0].dtype)

    def step(carry):
        i, ids, scores, counts, done, cache = carry
        last = jax.lax.dynamic_slice_in_dim(ids, i - 1, 1, 2)
        logits, cache = nnx.merge(decode_graph, *arrays).decode(last.reshape(-1, 1), cache, *memory)
        flat = ids.reshape(batch * beam, -1)
        logits = penalize(logits[:, -1].astype(dtype), flat, (places < i)[None], text.repetition_penalty)
        vocab = jnp.arange(logits.shape[-1])
        log_p = jax.nn.log_softmax(_allowed(logits, text)).reshape(batch, beam, -1)
        # A finished beam goes on in one way only, at no cost.
        ended = done | (i >= ends)[:, None]
        log_p = jnp.where(ended[..., None], jnp.where(vocab == text.fill, 0.0, -jnp.inf).astype(dtype), log_p)
        best, place = jax.lax.top_k((scores[..., None] + log_p).reshape(batch, -1), beam)
        parent, token = place // len(vocab), (place % len(vocab)).astype(ids.dtype)
        # Within a prompt every beam goes on with it.
        given = (i < lengths)[:, None]
        parent = jnp.where(given, jnp.arange(beam, dtype=parent.dtype), parent)
        token = jnp.where(given, jax.lax.dynamic_slice_in_dim(ids, i, 1, 2)[..., 0], token)
        scores = jnp.where(given, scores, best)
        ids, counts, done, ended = (_pick(x, parent) for x in (ids, counts, done, ended))
        rows = (jnp.arange(batch, dtype=parent.dtype)[:, None] * beam + parent).reshape(-1)
        cache = jax.tree.map(lambda x: x[rows] if x.ndim else x, cache)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[..., None], i, 2)
        counts = counts + (~ended & ~given).astype(counts.dtype)
        done = done | (~given & _among(token, text.stops))
        return i + 1, ids, scores, counts, done, cache

    def unfinished(carry):
        return ~(carry[4] | (carry[0] >= ends)[:, None]).all()

    # All beams start alike: only the first counts, or they would stay alike.
    scores = jnp.broadcast_to(jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf).astype(dtype), (batch, beam))
    counts, done = jnp.zeros((batch, beam), jnp.int32), jnp.zeros((batch, beam), bool)
    carry = jax.lax.while_loop(unfinished, step, (first, ids, scores, counts, done, cache))
    _, ids, scores, counts, _, _ = carry
    ranked = scores / ((5 + counts.astype(dtype)) / 6) ** beams.length_penalty
    return _pick(ids, ranked.argmax(-1)[:, None])[:, 0]


def _filled(model: Any, prompt: Int[Array, "b t"], first: Int[Array, ""], room: int, *memory: Array) -> Any:
    """A cache that holds the prompts up to the last token of the shortest, which is read next."""
    cache = model.init_cache(len(prompt), room)
    if prompt.shape[1] > 1:
        _, cache = model.decode(prompt[:, :-1], cache, *memory)
    return tuple(layer._replace(length=(first - 1).astype(layer.length.dtype)) for layer in cache)


def _start(prompt: Int[Array, "b t"], text: Text) -> Int[Array, "b m"]:
    """The prompts in rows that have room for what is written."""
    return jnp.pad(prompt, ((0, 0), (0, text.new)), constant_values=text.fill)


def _allowed(logits: Float[Array, "b v"], text: Text) -> Float[Array, "b v"]:
    if text.banned is None:
        return logits
    return jnp.where(jnp.arange(logits.shape[-1]) == text.banned, -jnp.inf, logits)


def _among(token: Int[Array, "*b"], stops: tuple[int, ...]) -> Bool[Array, "*b"]:
    return functools.reduce(jnp.logical_or, (token == s for s in stops), jnp.zeros(token.shape, bool))


def _pick(x: Array, at: Int[Array, "b k"]) -> Array:
    """Of every row of x (B, K, ...) the entries `at`."""
    return jnp.take_along_axis(x, at.reshape(*at.shape, *(1,) * (x.ndim - 2)), 1)
