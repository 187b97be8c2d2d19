"""Text from a transformer: greedy, sampled or by beam search.

`generate` works with every model that has `init_cache(batch, max_len)`, `decode(ids, cache)` and
`config.vocab_size`, `translate` with encoder-decoder models. Arguments are validated here; `decoding` does
the rest, so that jaxarch.generate gives the same tokens from the same uniform numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchref import decoding
from torchref.decoding import Beams, Sampling, Settings


@torch.no_grad()
def generate(
    model: Any,
    prompt_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    key: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """The prompts (B, T), continued by `max_new_tokens` tokens: (B, T + new).

    Temperature 0 takes the likeliest token. Otherwise tokens are sampled, among the `top_k` likeliest, then
    among the fewest whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751); tokens tied
    with the last of these stay. The draws come from `key`, or are given as `uniforms` (B, new) in [0, 1).
    `repetition_penalty` divides the positive logits of tokens that the row holds and multiplies the negative
    ones, before all else (Keskar et al. 2019, arXiv:1909.05858). `beam_size` above 1 searches as `translate`
    does. `eos_token_id` is one token that ends a row, or several. `lengths` (B,) says where prompts of
    unequal length end; each is continued from there. After its end a row holds the first of the
    `eos_token_id`, or 0 if there is none. Settings out of range or without effect, and prompts that do not
    fit the model, are ValueErrors, ids outside the vocabulary IndexErrors.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, repetition_penalty, beam_size, length_penalty)
    stop_tokens = check_stops(eos_token_id, model.config.vocab_size)
    pad_token = stop_tokens[0] if stop_tokens else 0
    batch, prompt_len = prompt_ids.shape
    if prompt_len == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if lengths is not None:
        lengths = check_lengths(lengths, batch, prompt_len).to(prompt_ids.device)
        real = torch.arange(prompt_len, device=prompt_ids.device) < lengths[:, None]
        prompt_ids = torch.where(real, prompt_ids, pad_token)
    uniforms = check_draws(temperature, key, uniforms, (batch, max_new_tokens))
    model.init_cache(1, prompt_len + max_new_tokens)  # raises if the model is too short for it
    settings = Settings(max_new_tokens, float(repetition_penalty), stop_tokens, pad_token, None)
    lengths = torch.full((batch,), prompt_len, device=prompt_ids.device) if lengths is None else lengths
    training = model.training
    model.eval()
    if beam_size > 1:
        beams = Beams(beam_size, length_penalty)
        ids = decoding.beam_search(model, settings, beams, prompt_ids, lengths, None)
    else:
        sampling = Sampling(temperature, top_k, top_p)
        ids = decoding.sample(model, settings, sampling, prompt_ids, lengths, uniforms, None)
    model.train(training)
    return ids


@torch.no_grad()
def translate(
    model: Any,
    src_ids: Tensor,
    max_new_tokens: int,
    *,
    bos_token_id: int,
    eos_token_id: int,
    beam_size: int = 1,
    length_penalty: float = 0.0,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: torch.Generator | None = None,
    uniforms: Tensor | None = None,
) -> Tensor:
    """The likeliest targets of sources (B, S) by beam search: (B, max_new_tokens), padded after the end.

    The model has `encode(src)`, `init_cache(batch, max_len)`, `decode(ids, cache, memory, mask)` and
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never generated before the end. Beams are
    ranked by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one
    stays a beam while its log p is among the best. With a `temperature` targets are sampled, as `generate`
    does. Settings out of range or without effect, and sequences that do not fit the model, are ValueErrors.
    """
    pad_token = model.config.pad_token_id
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, 1.0, beam_size, length_penalty)
    if eos_token_id == pad_token:
        raise ValueError(
            f"eos_token_id {pad_token} is the model's pad_token_id: give another token for the end"
        )
    if src_ids.shape[1] == 0:
        raise ValueError("the source is empty: give at least one token")
    uniforms = check_draws(temperature, key, uniforms, (len(src_ids), max_new_tokens))
    settings = Settings(max_new_tokens, 1.0, (eos_token_id,), pad_token, pad_token)
    prompt = torch.full_like(src_ids[:, :1], bos_token_id)
    lengths = torch.ones(len(src_ids), dtype=torch.int64, device=src_ids.device)
    training = model.training
    model.eval()
    if temperature > 0:
        ids = decoding.sample(
            model, settings, Sampling(temperature, top_k, top_p), prompt, lengths, uniforms, src_ids
        )
    else:
        ids = decoding.beam_search(
            model, settings, Beams(beam_size, length_penalty), prompt, lengths, src_ids
        )
    model.train(training)
    return ids[:, 1:]


def check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
    """Reject settings out of range, and those without effect, with a ValueError."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be 0 (greedy) or positive, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], not {top_p}")
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise ValueError("temperature 0 is greedy: top_k and top_p have no effect, set temperature")


def check_search(
    temperature: float, repetition_penalty: float, beam_size: int, length_penalty: float
) -> None:
    """Reject settings out of range, and contradictory ones, with a ValueError."""
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise ValueError(f"repetition_penalty must be positive (1 = off), not {repetition_penalty}")
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise ValueError("length_penalty has no effect on a single beam: set beam_size")
    if beam_size > 1 and temperature > 0:
        raise ValueError("beam search does not sample: temperature contradicts beam_size, set one")


def check_stops(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """The stop tokens, which end a row; one outside the vocabulary is a ValueError."""
    tokens = () if eos_token_id is None else eos_token_id
    stop_tokens = (tokens,) if isinstance(tokens, int) else tuple(int(token) for token in tokens)
    for token in stop_tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"eos_token_id {token} is not in [0, {vocab_size})")
    return stop_tokens


def check_lengths(lengths: Tensor, batch: int, prompt_len: int) -> Tensor:
    """How many tokens each prompt has; another shape, or a length outside [1, T], is a ValueError."""
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be {batch} integers, not {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if lengths.numel() and not (lengths.min() >= 1 and lengths.max() <= prompt_len):
        raise ValueError(f"lengths must be in [1, {prompt_len}], not {lengths.tolist()}")
    return lengths


def check_draws(
    temperature: float, key: torch.Generator | None, uniforms: Tensor | None, shape: tuple[int, int]
) -> Tensor:
    """The uniform numbers that tokens are drawn with: given, or from the key; zeros where nothing is drawn.

    Not exactly one of the two, one without effect, and uniforms of another shape are ValueErrors.
    """
    if temperature == 0:
        if key is not None or uniforms is not None:
            raise ValueError("temperature 0 is greedy: key and uniforms have no effect, set temperature")
        return torch.zeros(shape)
    if key is not None and uniforms is None:
        return torch.rand(shape, generator=key)
    if key is not None or uniforms is None:
        raise ValueError("sampling needs either key or uniforms")
    if uniforms.shape != shape:
        raise ValueError(f"uniforms have shape {tuple(uniforms.shape)}, needed is {shape}")
    return uniforms
