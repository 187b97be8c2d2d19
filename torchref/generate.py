"""Text from a transformer: greedy, sampled or by beams, with a key-value cache.

`generate` works with every model that has `init_cache(batch, max_len)`, `decode(ids, cache)` and
`config.vocab_size`, `translate` with encoder-decoder models. A token is drawn by inverting the cumulative
distribution at a uniform number; jaxarch.generate draws the same token from the same number.

Prompts of unequal length stand at the left. The cache is filled for the longest and then set back to the
shortest: from there on every row takes its own token where it has one, and the next of the model where it
has none, so that all rows are at the same position and no position is shifted.
"""

import math
from collections.abc import Sequence
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


class Text(NamedTuple):
    """What all ways of decoding share."""

    new: int
    repetition_penalty: float
    stops: tuple[int, ...]
    fill: int  # what a row holds after its end
    banned: int | None  # a token that is never written


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
    ones, before all else (Keskar et al. 2019, arXiv:1909.05858). `beam_size` above 1 searches as
    `translate` does. `eos_token_id` is one token that ends a row, or several. `lengths` (B,) says where
    prompts of unequal length end; each goes on right there. After its end a row holds the first of the
    `eos_token_id`, or 0 if there is none. Settings out of range or without effect, and prompts that do not
    fit the model, are ValueErrors, ids outside the vocabulary IndexErrors.
    """
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, repetition_penalty, beam_size, length_penalty)
    stops = check_stops(eos_token_id, model.config.vocab_size)
    batch, width = prompt_ids.shape
    if width == 0:
        raise ValueError("the prompt is empty: give at least one token")
    if lengths is not None:
        lengths = check_lengths(lengths, batch, width).to(prompt_ids.device)
        real = torch.arange(width, device=prompt_ids.device) < lengths[:, None]
        prompt_ids = torch.where(real, prompt_ids, stops[0] if stops else 0)
    uniforms = check_draws(temperature, key, uniforms, (batch, max_new_tokens))
    model.init_cache(1, width + max_new_tokens)  # refuses what is too long for the model
    text = Text(max_new_tokens, float(repetition_penalty), stops, stops[0] if stops else 0, None)
    lengths = torch.full((batch,), width, device=prompt_ids.device) if lengths is None else lengths
    training = model.training
    model.eval()
    if beam_size > 1:
        ids = _search(model, text, Beams(beam_size, length_penalty), prompt_ids, lengths, None)
    else:
        sampling = Sampling(temperature, top_k, top_p)
        ids = _sample(model, text, sampling, prompt_ids, lengths, uniforms, None)
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
    `config.pad_token_id`. `beam_size` 1 is greedy. Padding is never written before the end. Beams are ranked
    by log p / ((5 + length) / 6)^length_penalty (Wu et al. 2016, arXiv:1609.08144); a finished one keeps its
    place while its log p is among the best. With a `temperature` targets are sampled, as `generate` does.
    Settings out of range or without effect, and sequences that do not fit the model, are ValueErrors.
    """
    pad = model.config.pad_token_id
    check_settings(max_new_tokens, temperature, top_k, top_p)
    check_search(temperature, 1.0, beam_size, length_penalty)
    if eos_token_id == pad:
        raise ValueError(
            f"eos_token_id {pad} is the model's pad_token_id: the end must be a token of its own"
        )
    if src_ids.shape[1] == 0:
        raise ValueError("the source is empty: give at least one token")
    uniforms = check_draws(temperature, key, uniforms, (len(src_ids), max_new_tokens))
    text = Text(max_new_tokens, 1.0, (eos_token_id,), pad, pad)
    prompt = torch.full_like(src_ids[:, :1], bos_token_id)
    lengths = torch.ones(len(src_ids), dtype=torch.int64, device=src_ids.device)
    training = model.training
    model.eval()
    if temperature > 0:
        ids = _sample(model, text, Sampling(temperature, top_k, top_p), prompt, lengths, uniforms, src_ids)
    else:
        ids = _search(model, text, Beams(beam_size, length_penalty), prompt, lengths, src_ids)
    model.train(training)
    return ids[:, 1:]


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


def check_search(
    temperature: float, repetition_penalty: float, beam_size: int, length_penalty: float
) -> None:
    """Refuse settings out of range, and those that contradict, with a ValueError."""
    if not (math.isfinite(repetition_penalty) and repetition_penalty > 0):
        raise ValueError(f"repetition_penalty must be positive (1 is none), not {repetition_penalty}")
    if beam_size < 1:
        raise ValueError(f"beam_size must be at least 1, not {beam_size}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise ValueError(f"length_penalty must be 0 or positive, not {length_penalty}")
    if beam_size == 1 and length_penalty:
        raise ValueError("one beam has no rivals: length_penalty has no effect, set beam_size")
    if beam_size > 1 and temperature > 0:
        raise ValueError("beams draw nothing: temperature contradicts beam_size, set one")


def check_stops(eos_token_id: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end a row; one outside the vocabulary is a ValueError."""
    given = () if eos_token_id is None else eos_token_id
    stops = (given,) if isinstance(given, int) else tuple(int(token) for token in given)
    for token in stops:
        if not 0 <= token < vocab_size:
            raise ValueError(f"eos_token_id {token} is not in [0, {vocab_size})")
    return stops


def check_lengths(lengths: Tensor, batch: int, width: int) -> Tensor:
    """How many tokens each prompt has; another shape, or a length outside [1, T], is a ValueError."""
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(
            f"lengths must be {batch} integers, not {lengths.dtype} of shape {tuple(lengths.shape)}"
        )
    if lengths.numel() and not (lengths.min() >= 1 and lengths.max() <= width):
        raise ValueError(f"lengths must be in [1, {width}], not {lengths.tolist()}")
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


def penalize(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), lower where a token is among the ids (B, M) of its row; see `generate`."""
    if penalty == 1:
        return logits
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, True)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _sample(
    model: Any,
    text: Text,
    sampling: Sampling,
    prompt: Tensor,
    lengths: Tensor,
    uniforms: Tensor,
    src: Tensor | None,
) -> Tensor:
    width, new = prompt.shape[1], text.new
    memory = () if src is None else model.encode(src)
    first = int(lengths.min())
    # The last token is written and not read again.
    cache = _filled(model, prompt, first, width + new - 1, *memory)
    ids, done = _start(prompt, text), torch.zeros_like(lengths, dtype=torch.bool)
    uniforms = uniforms.to(ids.device)
    for i in range(first, width + new):
        logits, cache = model.decode(ids[:, i - 1 : i], cache, *memory)
        logits = _allowed(penalize(logits[:, -1], ids[:, :i], text.repetition_penalty), text)
        at = (i - lengths).clamp(0, new - 1)
        token = choose(logits, uniforms.gather(1, at[:, None])[:, 0], *sampling)
        token = torch.where(done | (i >= lengths + new), text.fill, token)
        given = i < lengths
        done = done | (~given & _among(token, text.stops))
        ids[:, i] = torch.where(given, ids[:, i], token)
        if (done | (i + 1 >= lengths + new)).all():
            break
    return ids


def _search(
    model: Any, text: Text, beams: Beams, prompt: Tensor, lengths: Tensor, src: Tensor | None
) -> Tensor:
    (batch, width), new, beam, device = prompt.shape, text.new, beams.size, prompt.device
    memory = () if src is None else model.encode(src)
    first = int(lengths.min())
    cache = _filled(model, prompt, first, width + new - 1, *memory)
    memory = tuple(x.repeat_interleave(beam, 0) for x in memory)
    cache = _rows(cache, torch.arange(batch, device=device).repeat_interleave(beam))
    ids = _start(prompt, text)[:, None].repeat(1, beam, 1)
    ends = lengths + new
    param = next(model.parameters())
    dtype = torch.promote_types(param.dtype, torch.float32)
    # All beams start alike: only the first counts, or they would stay alike.
    scores = torch.full((batch, beam), -math.inf, dtype=dtype, device=device)
    scores[:, 0] = 0
    counts = torch.zeros(batch, beam, dtype=torch.int32, device=device)
    done = torch.zeros(batch, beam, dtype=torch.bool, device=device)
    for i in range(first, width + new):
        logits, cache = model.decode(ids[:, :, i - 1].reshape(-1, 1), cache, *memory)
        flat = ids.reshape(batch * beam, -1)
        logits = penalize(logits[:, -1].to(dtype), flat[:, :i], text.repetition_penalty)
        vocab = torch.arange(logits.shape[-1], device=device)
        log_p = _allowed(logits, text).log_softmax(-1).reshape(batch, beam, -1)
        # A finished beam goes on in one way only, at no cost.
        ended = done | (i >= ends)[:, None]
        log_p = torch.where(
            ended[..., None], torch.where(vocab == text.fill, 0.0, -math.inf).to(dtype), log_p
        )
        order = (scores[..., None] + log_p).reshape(batch, -1).sort(dim=-1, descending=True, stable=True)
        best, place = order.values[:, :beam], order.indices[:, :beam]
        parent, token = place // len(vocab), place % len(vocab)
        # Within a prompt every beam goes on with it.
        given = (i < lengths)[:, None]
        parent = torch.where(given, torch.arange(beam, device=device), parent)
        token = torch.where(given, ids[:, :, i], token)
        scores = torch.where(given, scores, best)
        ids, counts, done, ended = (_pick(x, parent) for x in (ids, counts, done, ended))
        rows = (torch.arange(batch, device=device)[:, None] * beam + parent).reshape(-1)
        cache = _rows(cache, rows)
        ids[:, :, i] = token
        counts = counts + (~ended & ~given)
        done = done | (~given & _among(token, text.stops))
        if (done | (i + 1 >= ends)[:, None]).all():
            break
    ranked = scores / ((5 + counts.to(dtype)) / 6) ** beams.length_penalty
    return _pick(ids, ranked.argmax(-1)[:, None])[:, 0]


def _filled(model: Any, prompt: Tensor, first: int, room: int, *memory: Tensor) -> Any:
    """A cache that holds the prompts up to the last token of the shortest, which is read next."""
    cache = model.init_cache(len(prompt), room)
    if prompt.shape[1] > 1:
        _, cache = model.decode(prompt[:, :-1], cache, *memory)
    return tuple(layer._replace(length=first - 1) for layer in cache)


def _start(prompt: Tensor, text: Text) -> Tensor:
    """The prompts in rows that have room for what is written."""
    return torch.nn.functional.pad(prompt, (0, text.new), value=text.fill)


def _allowed(logits: Tensor, text: Text) -> Tensor:
    if text.banned is None:
        return logits
    return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) == text.banned, -math.inf)


def _among(token: Tensor, stops: tuple[int, ...]) -> Tensor:
    return torch.isin(token, torch.tensor(stops, dtype=token.dtype, device=token.device))


def _rows(cache: Any, rows: Tensor) -> Any:
    """The same cache for other rows."""
    return tuple(layer._replace(k=layer.k[rows], v=layer.v[rows]) for layer in cache)


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """Of every row of x (B, K, ...) the entries `at`."""
    return x[torch.arange(len(x), device=x.device)[:, None], at]
