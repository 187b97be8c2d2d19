"""torch.nn.MultiheadAttention: queries, keys and values by projections of the layer's own, and torch.nn's masks.

Masks are True where attention is blocked, or floats that are added to the scores. This is torch.nn's convention;
all other attention of `torchref.nn` takes masks that are True where attention is allowed.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Module, Parameter, init
from torch.nn import functional as F

Mask = Tensor | None


class MultiheadAttention(Module):
    """torch.nn.MultiheadAttention with its names and initialisers; Vaswani et al. 2017, arXiv:1706.03762.

    Arguments, shapes and results are torch.nn's. Dropout and the output projection are modules that are called, so
    that masks can be injected and calls recorded. Without need_weights a query whose keys are all blocked gives 0
    before `out_proj`, in every mode; torch's inference fast path gives NaN.

    Heads that do not divide the width, inputs and masks that do not fit are ValueErrors.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ):
        super().__init__()
        if min(embed_dim, num_heads) < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.add_zero_attn, self.batch_first = add_zero_attn, batch_first
        packed = self.kdim == self.vdim == embed_dim
        self.in_proj_weight: Any = self._drawn(3 * embed_dim, embed_dim) if packed else None
        self.q_proj_weight: Any = None if packed else self._drawn(embed_dim, embed_dim)
        self.k_proj_weight: Any = None if packed else self._drawn(embed_dim, self.kdim)
        self.v_proj_weight: Any = None if packed else self._drawn(embed_dim, self.vdim)
        self.in_proj_bias: Any = Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)
        self.bias_k: Any = None
        self.bias_v: Any = None
        if add_bias_kv:
            self.bias_k = Parameter(init.xavier_normal_(torch.empty(1, 1, embed_dim)))
            self.bias_v = Parameter(init.xavier_normal_(torch.empty(1, 1, embed_dim)))
        self.dropout = Dropout(dropout)

    @staticmethod
    def _drawn(rows: int, columns: int) -> Parameter:
        return Parameter(init.xavier_uniform_(torch.empty(rows, columns)))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Mask = None,
        need_weights: bool = True,
        attn_mask: Mask = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        axis = 0 if self.batch_first else 1
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x.unsqueeze(axis) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        self._check(query, key, value)
        q, k, v = self._projected(query, key, value)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        mask = merge_masks(attn_mask, key_padding_mask, (*q.shape[:3], key.shape[1 - axis]))
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says of attn_mask that it is causal: give the mask as well")
        causal = is_causal and key_padding_mask is None and not need_weights
        if causal:
            mask = ~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]
        elif mask is not None:
            # What was appended is never blocked.
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        drops = self.dropout.p > 0 and self.training
        weights = None
        if need_weights or drops:
            y, weights = attention(q, k, v, mask, self.dropout, need_weights)
        else:
            y = _fused(q, k, v, mask, causal)
        y = y.permute((0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)).reshape(query.shape)
        if weights is not None and need_weights:
            weights = weights.mean(1) if average_attn_weights else weights
        y = self.out_proj(y)
        if not batched:
            y, weights = y.squeeze(axis), None if weights is None else weights.squeeze(0)
        return y, weights if need_weights else None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values by head (N, H, T, D); the learned key and value appended."""
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        projected = [F.linear(x, w) for x, w in zip((query, key, value), weights, strict=True)]
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
            projected = [x + b for x, b in zip(projected, biases, strict=True)]
        if self.bias_k is not None:
            for i, extra in ((1, self.bias_k), (2, self.bias_v)):
                x, axis = projected[i], 1 if self.batch_first else 0
                shape = (x.shape[0], 1, x.shape[2]) if self.batch_first else (1, *x.shape[1:])
                projected[i] = torch.cat((x, extra.expand(shape)), axis)
        heads = [x.reshape(*x.shape[:2], self.num_heads, self.head_dim) for x in projected]
        return [x.permute((0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)) for x in heads]

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        inputs = (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim))
        for name, x, width in inputs:
            if x.ndim != 3 or x.shape[2] != width:
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, it needs the axes of the query and width {width}"
                )
        axis = 0 if self.batch_first else 1
        if key.shape[:2] != value.shape[:2] or key.shape[axis] != query.shape[axis]:
            raise ValueError(
                f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit: key "
                f"and value need the same length, and all three the same batch on axis {axis}"
            )


def merge_masks(attn_mask: Mask, key_padding_mask: Mask, shape: tuple[int, ...]) -> Tensor | None:
    """torch.nn's two masks as one that broadcasts to `shape` (N, H, L, S): True where blocked, or floats.

    A mask of another shape, or of integers, is a ValueError.
    """
    n, h, queries, keys = shape
    masks = []
    for name, mask in (("attn_mask", attn_mask), ("key_padding_mask", key_padding_mask)):
        if mask is None:
            continue
        known: dict[tuple[int, ...], tuple[int, ...]] = {(n, keys): (n, 1, 1, keys)}
        if name == "attn_mask":
            known = {(n * h, queries, keys): shape, (queries, keys): (1, 1, queries, keys)}
        if tuple(mask.shape) not in known:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, it must be {' or '.join(map(str, known))}"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"{name} must be bool, True where blocked, or floats to add, not {mask.dtype}")
        masks.append(mask.reshape(known[tuple(mask.shape)]))
    if len(masks) < 2:
        return masks[0] if masks else None
    if masks[0].dtype == masks[1].dtype == torch.bool:
        return masks[0] | masks[1]
    a, b = (m.float().masked_fill(m, -math.inf) if m.dtype == torch.bool else m for m in masks)
    return a + b


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: Callable[[Tensor], Tensor],
    as_nan: bool,
) -> tuple[Tensor, Tensor]:
    """The result and the weights after dropout; a query with every key blocked gives NaN, or 0 unless `as_nan`."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        # Added, and not selected by, so that the gradient of a query without keys is NaN too.
        mask = (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -math.inf)
            if mask.dtype == torch.bool
            else mask
        )
        scores = scores + mask
    if as_nan or mask is None:
        weights = scores.softmax(-1)
    else:
        none = (scores == -math.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(none, 0).softmax(-1).masked_fill(none, 0)
    weights = dropout(weights)
    return weights @ v, weights


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`attention` without weights and dropout, by a fused kernel."""
    if causal or mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    mask = ~mask if mask.dtype == torch.bool else mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask)
