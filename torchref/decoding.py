"""Decoding with a key-value cache: sampling and beam search.

A token is drawn by inverting the cumulative distribution at a uniform number; jaxarch.decoding draws the same
token from the same number.

Prompts of unequal length are left-aligned (right-padded). The cache is filled for the longest and then set back
to the shortest: from there on every row takes the next token of its prompt while it has one, and then the
model's, so that all rows are at the same position and no position is shifted.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
        threshold = logits.sort(-1).values[:, -top_k, None]
        logits = torch.where(logits >= threshold, logits, -math.inf)
    if top_p is not None:
        descending = logits.sort(-1, descending=True).values
        p = descending.softmax(-1)
        in_nucleus = p.cumsum(-1) - p < top_p
        threshold = torch.where(in_nucleus, descending, math.inf).amin(-1, keepdim=True)
        logits = torch.where(logits >= threshold, logits, -math.inf)
    p = logits.softmax(-1)
    total = p.cumsum(-1)
    tokens = (total <= uniforms[:, None].to(p.dtype) * total[:, -1:]).sum(-1)
    # Rounding must not step past the last token that has any probability.
    last = p.shape[-1] - 1 - (p > 0).flip(-1).int().argmax(-1)
    return torch.minimum(tokens, last)


def penalize(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), lower where a token is among the ids (B, M) of its row; see `generate`."""
    if penalty == 1:
        return logits
    occurs = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    return torch.where(occurs, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(
    model: Any,
    settings: Settings,
    sampling: Sampling,
    prompt: Tensor,
    lengths: Tensor,
    uniforms: Tensor,
    src: Tensor | None,
) -> Tensor:
    """The prompts (B, T), each continued from its length (B,) by tokens taken one by one: (B, T + new).

    `src` (B, S) is for encoder-decoders.
    """
    prompt_len, new = prompt.shape[1], settings.max_new_tokens
    memory = () if src is None else model.encode(src)
    shortest = int(lengths.min())
    # The last token is generated but never decoded.
    cache = prefill(model, prompt, shortest, prompt_len + new - 1, *memory)
    ids, done = with_room(prompt, settings), torch.zeros_like(lengths, dtype=torch.bool)
    uniforms = uniforms.to(ids.device)
    for i in range(shortest, prompt_len + new):
        logits, cache = model.decode(ids[:, i - 1 : i], cache, *memory)
        logits = penalize(logits[:, -1], ids[:, :i], settings.repetition_penalty)
        index = (i - lengths).clamp(0, new - 1)
        uniform = uniforms.gather(1, index[:, None])[:, 0]
        token = choose(ban(logits, settings.banned_token), uniform, *sampling)
        token = torch.where(done | (i >= lengths + new), settings.pad_token, token)
        in_prompt = i < lengths
        done = done | (~in_prompt & is_stop(token, settings.stop_tokens))
        ids[:, i] = torch.where(in_prompt, ids[:, i], token)
        if (done | (i + 1 >= lengths + new)).all():
            break
    return ids


def beam_search(
    model: Any, settings: Settings, beams: Beams, prompt: Tensor, lengths: Tensor, src: Tensor | None
) -> Tensor:
    """The prompts (B, T), each continued from its length (B,) by its best beam: (B, T + new).

    `src` (B, S) is for encoder-decoders.
    """
    (batch, prompt_len), new, beam = prompt.shape, settings.max_new_tokens, beams.size
    device = prompt.device
    memory = () if src is None else model.encode(src)
    shortest = int(lengths.min())
    cache = prefill(model, prompt, shortest, prompt_len + new - 1, *memory)
    memory = tuple(x.repeat_interleave(beam, 0) for x in memory)
    cache = reorder_cache(cache, torch.arange(batch, device=device).repeat_interleave(beam))
    ids = with_room(prompt, settings)[:, None].repeat(1, beam, 1)
    ends = lengths + new
    param = next(model.parameters())
    dtype = torch.promote_types(param.dtype, torch.float32)
    # All beams start equal: only the first counts, or they would stay equal.
    scores = torch.full((batch, beam), -math.inf, dtype=dtype, device=device)
    scores[:, 0] = 0
    counts = torch.zeros(batch, beam, dtype=torch.int32, device=device)
    done = torch.zeros(batch, beam, dtype=torch.bool, device=device)
    for i in range(shortest, prompt_len + new):
        logits, cache = model.decode(ids[:, :, i - 1].reshape(-1, 1), cache, *memory)
        rows, logits = ids.reshape(batch * beam, -1), logits[:, -1].to(dtype)
        logits = penalize(logits, rows[:, :i], settings.repetition_penalty)
        vocab = torch.arange(logits.shape[-1], device=device)
        log_p = ban(logits, settings.banned_token).log_softmax(-1).reshape(batch, beam, -1)
        # A finished beam continues in one way only, at no cost.
        ended = done | (i >= ends)[:, None]
        padding = torch.where(vocab == settings.pad_token, 0.0, -math.inf).to(dtype)
        log_p = torch.where(ended[..., None], padding, log_p)
        order = (scores[..., None] + log_p).reshape(batch, -1).sort(dim=-1, descending=True, stable=True)
        best, index = order.values[:, :beam], order.indices[:, :beam]
        parent, token = index // len(vocab), index % len(vocab)
        # Within a prompt every beam takes the prompt's token.
        in_prompt = (i < lengths)[:, None]
        parent = torch.where(in_prompt, torch.arange(beam, device=device), parent)
        token = torch.where(in_prompt, ids[:, :, i], token)
        scores = torch.where(in_prompt, scores, best)
        ids, counts, done, ended = (gather(x, parent) for x in (ids, counts, done, ended))
        rows = (torch.arange(batch, device=device)[:, None] * beam + parent).reshape(-1)
        cache = reorder_cache(cache, rows)
        ids[:, :, i] = token
        counts = counts + (~ended & ~in_prompt)
        done = done | (~in_prompt & is_stop(token, settings.stop_tokens))
        if (done | (i + 1 >= ends)[:, None]).all():
            break
    ranked = scores / ((5 + counts.to(dtype)) / 6) ** beams.length_penalty
    return gather(ids, ranked.argmax(-1)[:, None])[:, 0]


def prefill(model: Any, prompt: Tensor, shortest: int, max_len: int, *memory: Tensor) -> Any:
    """A cache that holds the prompts up to the last token of the shortest, which is decoded next."""
    cache = model.init_cache(len(prompt), max_len)
    if prompt.shape[1] > 1:
        _, cache = model.decode(prompt[:, :-1], cache, *memory)
    return tuple(layer._replace(length=shortest - 1) for layer in cache)


def with_room(prompt: Tensor, settings: Settings) -> Tensor:
    """The prompts, padded for the tokens to be generated."""
    return torch.nn.functional.pad(prompt, (0, settings.max_new_tokens), value=settings.pad_token)


def ban(logits: Tensor, token: int | None) -> Tensor:
    """Logits that are minus infinity at `token`."""
    if token is None:
        return logits
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) == token, -math.inf)


def is_stop(token: Tensor, stop_tokens: tuple[int, ...]) -> Tensor:
    """Whether each token is among the stop tokens."""
    return torch.isin(token, torch.tensor(stop_tokens, dtype=token.dtype, device=token.device))


def reorder_cache(cache: Any, rows: Tensor) -> Any:
    """The same cache for other rows."""
    return tuple(layer._replace(k=layer.k[rows], v=layer.v[rows]) for layer in cache)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Of every row of x (B, K, ...) the entries at `index`."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
