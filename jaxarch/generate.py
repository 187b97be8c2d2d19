"""Text from a transformer: greedy, sampled or by beam search.

`generate` works with every model that has `init_cache(batch, max_len)`, `decode(ids, cache)` and
`config.vocab_size`, `translate` with encoder-decoder models. Arguments are validated here; `decoding` does
the rest, so that torchref.generate gives the same tokens from the same uniform numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxarch import decoding, state
from jaxarch.decoding import Beams, Sampling, Settings
from jaxarch.errors import DataError, UsageError
from jaxarch.nn import check_ids


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
    ones, before all else (Keskar et al. 2019, arXiv:1909.05858). `beam_size` above 1 searches as `translate`
    does. `eos_token_id` is one token that ends a row, or several. `lengths` (B,) says where prompts of
    unequal length end; each is continued from there. After its end a row holds the first of the
    `eos_token_id`, or 0 if there is none.

    Raises:
        UsageError: a setting out of range, or one that has no effect.
        DataError: a prompt is empty, or too long for the model with the new tokens; ids outside the
            vocabulary; lengths or uniforms that do not fit.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, repetition_penalty, beam_size, length_penalty)
    stop_tokens = check_stops(eos_token_id, model.config.vocab_size)
    pad_token = stop_tokens[0] if stop_tokens else 0
    batch, prompt_len = prompt_ids.shape
    if prompt_len == 0:
        raise DataError("the prompt is empty: give at least one token")
    if lengths is not None:
        lengths = check_lengths(lengths, batch, prompt_len)
        real = jnp.arange(prompt_len, dtype=lengths.dtype) < lengths[:, None]
        prompt_ids = jnp.where(real, prompt_ids, pad_token)
    check_ids(prompt_ids, model.config.vocab_size, "token")
    uniforms = check_draws(temperature, key, uniforms, (batch, max_new_tokens))
    jax.eval_shape(lambda: model.init_cache(batch, prompt_len + max_new_tokens))
    graph, params, rest = state.split(model)
    settings = Settings(max_new_tokens, float(repetition_penalty), stop_tokens, pad_token, None)
    lengths = jnp.full(batch, prompt_len, jnp.int32) if lengths is None else lengths
    if beam_size > 1:
        beams = Beams(beam_size, float(length_penalty))
        return decoding.beam_search(graph, settings, beams, params, rest, prompt_ids, lengths, None)
    sampling = Sampling(float(temperature), top_k, top_p)
    return decoding.sample(graph, settings, sampling, params, rest, prompt_ids, lengths, uniforms, None)


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
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never generated before the end. Beams are
    ranked by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one
    stays a beam while its log p is among the best. With a `temperature` targets are sampled, as `generate`
    does.

    Raises:
        UsageError: a setting out of range, or one that has no effect; the end is the padding.
        DataError: a source is empty or too long for the model, or `max_new_tokens` is.
    """
    pad_token = model.config.pad_token_id
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, 1.0, beam_size, length_penalty)
    if eos_token_id == pad_token:
        raise UsageError(
            f"eos_token_id {pad_token} is the model's pad_token_id: give another token for the end"
        )
    if src_ids.shape[1] == 0:
        raise DataError("the source is empty: give at least one token")
    check_ids(src_ids, model.config.vocab_size, "token")
    uniforms = check_draws(temperature, key, uniforms, (len(src_ids), max_new_tokens))
    jax.eval_shape(lambda: model.init_cache(len(src_ids), max_new_tokens))
    graph, params, rest = state.split(model)
    settings = Settings(max_new_tokens, 1.0, (eos_token_id,), pad_token, pad_token)
    prompt = jnp.full((len(src_ids), 1), bos_token_id, src_ids.dtype)
    lengths = jnp.ones(len(src_ids), jnp.int32)
    if temperature > 0:
        sampling = Sampling(float(temperature), top_k, top_p)
        ids = decoding.sample(graph, settings, sampling, params, rest, prompt, lengths, uniforms, src_ids)
        return ids[:, 1:]
    beams = Beams(beam_size, float(length_penalty))
    return decoding.beam_search(graph, settings, beams, params, rest, prompt, lengths, src_ids)[:, 1:]


def check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
    """Reject settings out of range, and those without effect.

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
    """Reject settings out of range, and contradictory ones.

    Raises:
        UsageError: naming the setting.
    """
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise UsageError(f"repetition_penalty must be positive (1 = off), not {repetition_penalty}")
    if beam_size < 1:
        raise UsageError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise UsageError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise UsageError("length_penalty has no effect on a single beam: set beam_size")
    if beam_size > 1 and temperature > 0:
        raise UsageError("beam search does not sample: temperature contradicts beam_size, set one")


def check_stops(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """The stop tokens, which end a row.

    Raises:
        UsageError: one is outside the vocabulary.
    """
    tokens = () if eos_token_id is None else eos_token_id
    stop_tokens = (tokens,) if isinstance(tokens, int) else tuple(int(token) for token in tokens)
    for token in stop_tokens:
        if not 0 <= token < vocab_size:
            raise UsageError(f"eos_token_id {token} is not in [0, {vocab_size})")
    return stop_tokens


def check_lengths(lengths: Array, batch: int, prompt_len: int) -> Int[Array, " b"]:
    """How many tokens each prompt has.

    Raises:
        DataError: another shape, or a length outside [1, T].
    """
    given = np.asarray(lengths)
    if given.shape != (batch,) or given.dtype.kind not in "iu":
        raise DataError(f"lengths must be {batch} integers, not {given.dtype} of shape {given.shape}")
    if given.size and not (given.min() >= 1 and given.max() <= prompt_len):
        raise DataError(f"lengths must be in [1, {prompt_len}], not {given.tolist()}")
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
