"""Text from a causal language model: greedy or sampled, with a key-value cache.

Works with every model that has `init_cache(batch, max_len)` and `decode(ids, cache)`. A token is drawn by
inverting the cumulative distribution at a uniform number; jaxarch.generate draws the same token from the
same number. `translate` is the same for encoder-decoder models, greedy or with beams.
"""

import math
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def generate(
    model: Any,
    prompt_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    eos_token_id: int | None = None,
) -> Tensor:
    """The prompts (B, T), continued by `max_new_tokens` tokens: (B, T + new).

    Temperature 0 takes the likeliest token. Otherwise tokens are sampled, among the `top_k` likeliest, then
    among the fewest whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751); tokens tied
    with the last of these stay. The draws come from `key`, or are given as `uniforms` (B, new) in [0, 1).
    After `eos_token_id` a row holds only that token. Settings out of range or without effect, and prompts
    that do not fit the model, are ValueErrors.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    batch, length = prompt_ids.shape
    if length == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if temperature == 0:
        if key is not None or uniforms is not None:
            raise ValueError("temperature 0 is greedy: key and uniforms have no effect, set temperature")
        uniforms = torch.zeros(batch, max_new_tokens)
    elif key is not None and uniforms is None:
        uniforms = torch.rand(batch, max_new_tokens, generator=key)
    elif key is not None or uniforms is None:
        raise ValueError("sampling needs either key or uniforms")
    elif uniforms.shape != (batch, max_new_tokens):
        raise ValueError(f"uniforms have shape {tuple(uniforms.shape)}, needed is {(batch, max_new_tokens)}")
    cache = model.init_cache(batch, length + max_new_tokens)
    training = model.training
    model.eval()
    ids = prompt_ids
    done = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    logits, cache = model.decode(prompt_ids, cache)
    for i in range(max_new_tokens):
        token = choose(logits[:, -1], uniforms[:, i].to(ids.device), temperature, top_k, top_p)
        if eos_token_id is not None:
            token = torch.where(done, eos_token_id, token)
            done = done | (token == eos_token_id)
        ids = torch.cat((ids, token[:, None].to(ids.dtype)), 1)
        if i + 1 < max_new_tokens:
            logits, cache = model.decode(token[:, None], cache)
    model.train(training)
    return ids


def check_settings(
    max_new_tokens: int, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> None:
    """Refuse settings out of range, and those without effect, with a ValueError."""
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


def choose(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """One token per row of logits (B, V): the likeliest at temperature 0, else drawn as `generate` says."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.sort(-1).values[:, -top_k, None]
        logits = torch.where(logits >= least, logits, -math.inf)
    if top_p is not None:
        falling = logits.sort(-1, descending=True).values
        p = falling.softmax(-1)
        needed = p.cumsum(-1) - p < top_p
        least = torch.where(needed, falling, math.inf).amin(-1, keepdim=True)
        logits = torch.where(logits >= least, logits, -math.inf)
    p = logits.softmax(-1)
    total = p.cumsum(-1)
    tokens = (total <= uniforms[:, None].to(p.dtype) * total[:, -1:]).sum(-1)
    # Rounding must not step past the last token that has any probability.
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)
    return torch.minimum(tokens, last)


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
) -> Tensor:
    """The likeliest targets of sources (B, S) by beam search: (B, max_new_tokens), padded after the end.

    The model has `encode(src)`, `init_cache(batch, max_len)`, `decode(ids, cache, memory, mask)` and
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never written before the end. Beams are ranked
    by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one keeps its
    place while its log p is among the best. Settings out of range or without effect, and sequences that do
    not fit the model, are ValueErrors.
    """
    beam, pad = beam_size, model.config.pad_token_id
    check_beams(max_new_tokens, beam, length_penalty, eos_token_id, pad)
    batch, device = len(src_ids), src_ids.device
    if src_ids.shape[1] == 0:
        raise ValueError("the source is empty: give at least one token")
    cache = model.init_cache(batch * beam, max_new_tokens)
    training = model.training
    model.eval()
    memory, mask = (x.repeat_interleave(beam, 0) for x in model.encode(src_ids))
    dtype = torch.promote_types(memory.dtype, torch.float32)
    ids = torch.full((batch, beam, max_new_tokens), pad, dtype=src_ids.dtype, device=device)
    token = torch.full((batch, beam), bos_token_id, dtype=src_ids.dtype, device=device)
    # All beams start alike: only the first counts, or they would stay alike.
    scores = torch.full((batch, beam), -math.inf, dtype=dtype, device=device)
    scores[:, 0] = 0
    lengths = torch.zeros(batch, beam, dtype=torch.int32, device=device)
    done = torch.zeros(batch, beam, dtype=torch.bool, device=device)
    for i in range(max_new_tokens):
        logits, cache = model.decode(token.reshape(-1, 1), cache, memory, mask)
        logits = logits[:, -1].to(dtype).reshape(batch, beam, -1)
        vocab = logits.shape[-1]
        padding = torch.arange(vocab, device=device) == pad
        log_p = logits.masked_fill(padding, -math.inf).log_softmax(-1)
        # A finished beam goes on in one way only, at no cost.
        log_p = torch.where(done[..., None], torch.where(padding, 0.0, -math.inf).to(dtype), log_p)
        order = (scores[..., None] + log_p).reshape(batch, -1).sort(dim=-1, descending=True, stable=True)
        scores, best = order.values[:, :beam], order.indices[:, :beam]
        parent, token = best // vocab, (best % vocab).to(ids.dtype)
        ids, lengths, done = (_pick(x, parent) for x in (ids, lengths, done))
        rows = (torch.arange(batch, device=device)[:, None] * beam + parent).reshape(-1)
        cache = tuple(layer._replace(k=layer.k[rows], v=layer.v[rows]) for layer in cache)
        ids[:, :, i] = token
        lengths, done = lengths + ~done, done | (token == eos_token_id)
        if done.all():
            break
    model.train(training)
    ranked = scores / ((5 + lengths.to(dtype)) / 6) ** length_penalty
    return _pick(ids, ranked.argmax(-1)[:, None])[:, 0]


def check_beams(max_new_tokens: int, beam_size: int, length_penalty: float, eos: int, pad: int) -> None:
    """Refuse settings out of range, and those without effect, with a ValueError."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise ValueError("one beam has no rivals: length_penalty has no effect, set beam_size")
    if eos == pad:
        raise ValueError(
            f"eos_token_id {eos} is the model's pad_token_id: the end must be a token of its own"
        )


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """Of every row of x (B, K, ...) the entries `at`."""
    return x[torch.arange(len(x), device=x.device)[:, None], at]
