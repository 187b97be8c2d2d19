"""Multi-head attention with relative, local and sparse patterns, rotary positions and a cache.

Shapes: b batch, h heads, q and k query and key positions, d head size. There are two kinds of mask, True =
may attend. What the caller masks (`mask`) scores -1e9, so that a row whose keys are all masked is the uniform
mean of its values. What the pattern excludes (`causal`, local, sparse) can never be attended to: that mean
runs over the pattern only, and a causal layer stays causal whatever is masked.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Dropout, Embedding, Linear, Module, init
from torch.nn import functional as F

from torchref.nn.masks import expand_mask
from torchref.nn.position import RotaryEmbedding

ATTENTION_TYPES = ("standard", "relative", "local", "sparse")
POSITIONS = ("none", "rope")
MASKED_SCORE = -1e9


@dataclass(frozen=True)
class AttentionConfig:
    """How positions enter `MultiHeadAttention`.

    position: "none", or "rope" for rotary positions up to `max_len` (Su et al. 2021, arXiv:2104.09864), in
        the pairs of `rope_layout`; `use_learnable` learns their inverse frequencies. See RotaryEmbedding.
    causal: a query attends to no later key; queries are the last Tq of the Tk positions.

    An unknown position and learned frequencies without rotary positions are ValueErrors.
    """

    position: str = "none"
    causal: bool = False
    max_len: int = 5000
    rope_layout: str = "interleaved"
    use_learnable: bool = False

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise ValueError(f"unknown position {self.position!r}: known: {', '.join(POSITIONS)}")
        if self.use_learnable and self.position != "rope":
            raise ValueError("use_learnable learns rotary frequencies: it needs position='rope'")


class Cache(NamedTuple):
    """Keys and values of the positions so far, in tensors that do not grow; `length` counts them."""

    k: Tensor
    v: Tensor
    length: int

    def extended(self, k: Tensor, v: Tensor) -> "Cache":
        """The cache with the keys and values of the next T positions, (B, H, T, Dh), written into it."""
        start, end = self.length, self.length + k.shape[2]
        return Cache(
            torch.cat((self.k[:, :, :start], k, self.k[:, :, end:]), 2),
            torch.cat((self.v[:, :, :start], v, self.v[:, :, end:]), 2),
            end,
        )


class MultiHeadAttention(Module):
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762).

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D); with `return_weights` also the weights after
    dropout (B, H, Tq, Tk); with `cache` also the cache that now holds the new keys. The mask is (B, Tk),
    (B, Tq, Tk) or broadcasts to (B, H, Tq, Tk). `attention_weights` are those of the last call, unless a fused
    kernel or blocks computed it.

    attention_type:
        "relative": learned vectors for clipped distances, on keys and values (Shaw et al. 2018,
            arXiv:1803.02155), up to `max_relative_position` = w.
        "local": keys at a distance of at most w.
        "sparse": those, and every key at a multiple of w (the strided pattern of Child et al. 2019,
            arXiv:1904.10509). Local and sparse attention of a sequence to itself computes only the blocks
            that the pattern touches, and drops weights there, unless weights are asked for or the mask has a
            row per query. A dropout mask then has the blocks' shape: see `block_attention`.
    num_heads: another name of n_heads.
    use_flash_attention: a fused kernel (SDPA). While dropout is active the exact path runs, whose dropout mask
        can be injected.

    Unknown types, heads that do not divide the width, fused and relative at once, and masks that do not fit
    are ValueErrors.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int | None = None,
        dropout: float = 0.1,
        attention_type: str = "standard",
        max_relative_position: int = 32,
        use_flash_attention: bool = False,
        config: AttentionConfig | None = None,
        num_heads: int | None = None,
    ):
        super().__init__()
        config = config or AttentionConfig()
        if attention_type not in ATTENTION_TYPES:
            raise ValueError(
                f"unknown attention type {attention_type!r}: known: {', '.join(ATTENTION_TYPES)}"
            )
        n_heads = count_heads(n_heads, num_heads)
        if d_model % n_heads:
            raise ValueError(f"n_heads {n_heads} does not divide d_model {d_model}")
        if max_relative_position < 1:
            raise ValueError(f"max_relative_position must be at least 1, not {max_relative_position}")
        if use_flash_attention and attention_type == "relative":
            raise ValueError("there is no fused kernel for relative attention: unset use_flash_attention")
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, d_model // n_heads
        self.attention_type, self.window = attention_type, max_relative_position
        self.use_flash_attention, self.causal = use_flash_attention, config.causal
        self.w_q = Linear(d_model, d_model)
        self.w_k = Linear(d_model, d_model)
        self.w_v = Linear(d_model, d_model)
        self.w_o = Linear(d_model, d_model)
        self.dropout = Dropout(dropout)
        self.attention_weights: Tensor | None = None
        self.relative_keys: Embedding | None = None
        self.relative_values: Embedding | None = None
        self.rope: RotaryEmbedding | None = None
        if attention_type == "relative":
            self.relative_keys = self._distances()
            self.relative_values = self._distances()
        if config.position == "rope":
            self.rope = RotaryEmbedding(
                self.head_dim,
                config.max_len,
                layout=config.rope_layout,
                learnable=config.use_learnable,
            )

    def init_cache(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `max_len` positions."""
        zeros = self.w_k.weight.new_zeros(batch, self.n_heads, max_len, self.head_dim)
        return Cache(zeros, zeros.clone(), 0)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Any, ...]:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self._split(self.w_q(query)), self._split(self.w_k(key)), self._split(self.w_v(value))
        start, k_start = self._starts(q, k, cache)
        if self.rope is not None:
            q, k = self.rope(q, k, start, k_start)
        if cache is not None:
            cache = cache.extended(k, v)
            k, v = cache.k, cache.v
        mask = expand_mask(mask, (*q.shape[:3], k.shape[2]))
        weights = None
        if self._runs_blocks(q, k, mask, cache, return_weights):
            strided = self.attention_type == "sparse"
            dropout = self.dropout if self._drops else None
            y = block_attention(q, k, v, mask, self.window, strided, self.causal, dropout)
        else:
            q_positions = torch.arange(q.shape[2], device=q.device) + start
            k_positions = torch.arange(k.shape[2], device=q.device)
            allowed = pattern(q_positions, k_positions, self.attention_type, self.window, self.causal)
            if self.use_flash_attention and not return_weights and not self._drops:
                # The kernel knows the plain causal pattern without a mask.
                plain = self.attention_type == "standard" and q.shape[2] == k.shape[2]
                y = fused_attention(q, k, v, mask, None if plain else allowed, causal=plain and self.causal)
            else:
                y, weights = self._exact(q, k, v, mask, allowed, k_positions - q_positions[:, None])
                self.attention_weights = weights.detach()
        y = self.w_o(y.transpose(1, 2).reshape(query.shape))
        extra = ((weights,) if return_weights else ()) + (() if cache is None else (cache,))
        return (y, *extra) if extra else y

    def scaled_dot_product_attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """q, k, v (B, H, T, Dh) -> the result (B, H, Tq, Dh) and the weights (B, H, Tq, Tk) after dropout."""
        return exact_attention(q, k, v, expand_mask(mask, (*q.shape[:3], k.shape[2])), None, self.dropout)

    @property
    def _drops(self) -> bool:
        return self.dropout.p > 0 and self.dropout.training

    def _distances(self) -> Embedding:
        table = Embedding(2 * self.window + 1, self.head_dim)
        init.normal_(table.weight, std=0.02)
        return table

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).transpose(1, 2)

    def _starts(self, q: Tensor, k: Tensor, cache: Cache | None) -> tuple[int, int]:
        """The positions of the first query and of the first key."""
        if cache is not None:
            if not self.causal:
                raise ValueError("a cache needs causal=True: later keys would change what was computed")
            return cache.length, cache.length
        start = k.shape[2] - q.shape[2] if self.causal else 0
        if start < 0:
            raise ValueError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        return start, 0

    def _runs_blocks(
        self, q: Tensor, k: Tensor, mask: Tensor | None, cache: Cache | None, return_weights: bool
    ) -> bool:
        return (
            self.attention_type in ("local", "sparse")
            and cache is None
            and q.shape[2] == k.shape[2] > 2 * self.window
            and not return_weights
            and (mask is None or mask.shape[1:] == (1, 1, k.shape[2]))
        )

    def _exact(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        allowed: Tensor | None,
        distance: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if self.relative_keys is None or self.relative_values is None:
            return exact_attention(q, k, v, mask, allowed, self.dropout)
        clipped = distance.clamp(-self.window, self.window) + self.window
        bias = torch.einsum("bhqd,qkd->bhqk", q, self.relative_keys(clipped))
        y, weights = exact_attention(q, k, v, mask, allowed, self.dropout, bias)
        return y + torch.einsum("bhqk,qkd->bhqd", weights, self.relative_values(clipped)), weights


AdvancedMultiHeadAttention = MultiHeadAttention


class MultiHeadAttentionWithRelativePosition(MultiHeadAttention):
    """Self-attention with relative positions (Shaw et al. 2018): x (B, T, D), mask -> (B, T, D)."""

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.1, max_relative_position: int = 32):
        super().__init__(d_model, n_heads, dropout, "relative", max_relative_position)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:  # type: ignore[override]
        return super().forward(x, mask=mask)


def count_heads(n_heads: int | None, num_heads: int | None) -> int:
    """The number of heads by either of its two names.

    A ValueError if neither is given or they differ.
    """
    given = {n for n in (n_heads, num_heads) if n is not None}
    if len(given) != 1:
        raise ValueError(f"give the number of heads once: n_heads is {n_heads}, num_heads {num_heads}")
    return given.pop()


def efficient_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by torch's fused kernels; q (..., Tq, D), k and v (..., Tk, D).

    The mask broadcasts to the scores. One of booleans is True where attention is allowed, and a row with every
    key masked gives 0; one of floats is added to the scores.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def scaled_dot_product_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q, k, v (B, H, T, Dh); the softmax is float32 at least.

    `mask` broadcasts to (B, H, Tq, Tk) or is (B, Tk) or (B, Tq, Tk); one that does not fit is a ValueError.
    With `causal` the queries are the last Tq of the Tk positions, so a cache's newest query sees every key.
    """
    n, m = q.shape[2], k.shape[2]
    positions = torch.arange(m, device=q.device)
    allowed = pattern(positions[:n] + (m - n), positions, "standard", 1, causal)
    return exact_attention(q, k, v, expand_mask(mask, (*q.shape[:3], m)), allowed, dropout)[0]


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    dropout: Dropout | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The result and the weights after dropout. `bias` is added to the scores before they are scaled."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    scores = scores if bias is None else scores + bias
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) / math.sqrt(q.shape[-1])
    weights = mask_scores(scores, mask, allowed).softmax(-1).to(q.dtype)
    weights = weights if dropout is None else dropout(weights)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v), weights


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The same by `F.scaled_dot_product_attention`. `causal` needs Tq = Tk."""
    if mask is not None:
        positions = torch.arange(q.shape[2], device=q.device)
        allowed = pattern(positions, positions, "standard", 1, True) if causal else allowed
        both = mask if allowed is None else mask & allowed
        # A zero query makes equal scores, hence the uniform mean of a row with every key masked.
        some = both.any(-1, keepdim=True)
        q = torch.where(some, q, 0.0)
        mask = both | (~some if allowed is None else ~some & allowed)
    elif allowed is not None:
        mask = allowed
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int,
    strided: bool = False,
    causal: bool = False,
    dropout: Dropout | None = None,
) -> Tensor:
    """Local or strided sparse attention over the blocks it touches: 3 w T scores, and T^2 / w if strided.

    Equal to masking all T^2 scores. Positions are cut into n blocks of w = `window`. A band of w lies in a
    block and its two neighbours; keys at a distance of a multiple of w have the same index in their block.
    `dropout` acts on the weights of the blocks, (B, H, n, w, 3 w), 2 w for causal, and n more if strided.
    """
    b, h, t, d = q.shape
    n, w = -(-t // window), window
    scale = 1 / math.sqrt(d)
    dtype = torch.promote_types(q.dtype, torch.float32)
    padding = n * w - t
    qs, ks, vs = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (n, w)) for x in (q, k, v))
    positions = torch.arange(n * w, device=q.device)
    valid = (positions < t).reshape(1, 1, n, w, 1)
    key_mask = None
    if mask is not None:
        key_mask = F.pad(mask[:, :, 0, :, None], (0, 0, 0, padding)).unflatten(2, (n, w))

    count = 2 if causal else 3
    distance = positions[:w, None] - (torch.arange(count * w, device=q.device) - w)
    band = (distance >= (0 if causal else -w)) & (distance <= w)
    band = band & _neighbours(valid, count)[..., 0][..., None, :]
    scores = [torch.einsum("bhnqd,bhnkd->bhnqk", qs, _neighbours(ks, count)).to(dtype) * scale]
    near_mask = None if key_mask is None else _neighbours(key_mask, count)[..., 0][..., None, :]
    scores[0] = mask_scores(scores[0], near_mask, band)
    if strided:
        distance = positions[:n, None] - positions[:n]
        far = ((distance > 1) | (distance < -1)) & ((distance > 0) | (not causal))
        column = torch.einsum("bhnqd,bhmqd->bhqnm", qs, ks).to(dtype) * scale
        far_mask = None if key_mask is None else key_mask[..., 0].transpose(2, 3)[..., None, :]
        column = mask_scores(column, far_mask, far & valid[0, 0, :, :, 0].T[:, None])
        scores.append(column.transpose(2, 3))
    weights = torch.cat(scores, -1).softmax(-1).to(q.dtype)
    weights = weights if dropout is None else dropout(weights)
    y = torch.einsum("bhnqk,bhnkd->bhnqd", weights[..., : count * w], _neighbours(vs, count))
    if strided:
        y = y + torch.einsum("bhnqm,bhmqd->bhnqd", weights[..., count * w :], vs)
    return y.reshape(b, h, n * w, d)[:, :, :t]


def _neighbours(x: Tensor, count: int) -> Tensor:
    """For each of the n blocks (axis 2) the one before, itself and, if count is 3, the one after, joined."""
    n = x.shape[2]
    padded = F.pad(x, (0, 0, 0, 0, 1, 1))
    return torch.cat([padded[:, :, i : i + n] for i in range(count)], 3)


def pattern(
    q_positions: Tensor, k_positions: Tensor, attention_type: str, window: int, causal: bool
) -> Tensor | None:
    """The attention mask of an attention type, True = may attend; None where every query sees every key."""
    distance = q_positions[:, None] - k_positions
    past = distance >= 0 if causal else None
    if attention_type not in ("local", "sparse"):
        return past
    near = distance.abs() <= window
    if attention_type == "sparse":
        near = near | (distance % window == 0)
    return near if past is None else near & past


def mask_scores(scores: Tensor, mask: Tensor | None, allowed: Tensor | None) -> Tensor:
    """Scores with masked keys at -1e9 and excluded ones at the lowest number of the dtype."""
    scores = scores if mask is None else scores.masked_fill(~mask, MASKED_SCORE)
    return scores if allowed is None else scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
