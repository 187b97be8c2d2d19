"""Attention for long sequences: chunked (exact), Performer, Linformer, Reformer.

Shapes: b batch, h heads, q and k positions, d head size, m features, r hash rounds, n chunks, w a chunk's
width. Masks: True = may attend; masked keys and excluded ones: see `torchref.nn.attention`. The three layers
have no T^2 weights to drop: their dropout acts on the result.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import Dropout, Linear, Module
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchref.nn.attention import mask_scores
from torchref.nn.masks import expand_mask, key_mask
from torchref.nn.position import check_length

# A shared query and key is most like itself: a position attends to itself only if there is no other key.
SELF_SCORE = -1e5


def chunked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, chunk_size: int = 128, causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, exactly, with memory T chunk_size (Rabe and Staats 2021, arXiv:2112.05682).

    Keys come chunk by chunk under an online softmax; the backward pass computes the scores again. The mask is
    (B, Tk), (B, Tq, Tk) or of 4 axes. With `causal` the queries are the last Tq of the Tk positions. A
    chunk_size below 1 and a mask that does not fit are ValueErrors.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    t, s = q.shape[2], k.shape[2]
    mask = expand_mask(mask, (*q.shape[:3], s))
    q_positions = torch.arange(t, device=q.device) + (s - t)

    def query_chunk(q: Tensor, q_positions: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        maximum = torch.full((*q.shape[:3], 1), torch.finfo(dtype).min, dtype=dtype, device=q.device)
        total = torch.zeros_like(maximum)
        y = torch.zeros(*q.shape[:3], v.shape[-1], dtype=dtype, device=q.device)
        for j in range(0, s, chunk_size):
            cut = slice(j, j + chunk_size)
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k[:, :, cut]).to(dtype) / math.sqrt(q.shape[-1])
            k_positions = torch.arange(j, min(j + chunk_size, s), device=q.device)
            allowed = k_positions <= q_positions[:, None] if causal else None
            part = None if mask is None else mask[..., cut] if mask.shape[-1] > 1 else mask
            scores = mask_scores(scores, part, allowed)
            higher = torch.maximum(maximum, scores.amax(-1, keepdim=True).detach())
            weights = torch.exp(scores - higher)
            shrink = torch.exp(maximum - higher)
            total = total * shrink + weights.sum(-1, keepdim=True)
            y = y * shrink + torch.einsum("bhqk,bhkd->bhqd", weights, v[:, :, cut].to(dtype))
            maximum = higher
        return (y / total).to(q.dtype)

    parts = []
    for i in range(0, t, chunk_size):
        cut = slice(i, i + chunk_size)
        part = None if mask is None else mask[:, :, cut] if mask.shape[2] > 1 else mask
        parts.append(checkpoint(query_chunk, q[:, :, cut], q_positions[cut], part, use_reentrant=False))
    return torch.cat(parts, 2)


class PerformerAttention(Module):
    """FAVOR+ (Choromanski et al. 2021, arXiv:2009.14794): softmax attention by random features, cost T.

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D). Positive orthogonal features, exp(w x - |x|^2 /
    2), of `n_features` directions w that all heads share: the buffer `projection` (n_features, head_dim). The
    mask is (B, Tk); a row with every key masked gives zero. With `causal` Tq must be Tk. Heads that do not
    divide the width and masks per query are ValueErrors.
    """

    projection: Tensor

    def __init__(
        self, d_model: int, n_heads: int, dropout: float = 0.1, n_features: int = 256, causal: bool = False
    ):
        super().__init__()
        self.n_heads, self.head_dim, self.causal = n_heads, check_heads(d_model, n_heads), causal
        self.w_q = Linear(d_model, d_model)
        self.w_k = Linear(d_model, d_model)
        self.w_v = Linear(d_model, d_model)
        self.w_o = Linear(d_model, d_model)
        self.dropout = Dropout(dropout)
        self.register_buffer("projection", orthogonal_features(n_features, self.head_dim))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = (
            split_heads(layer(x), self.n_heads)
            for layer, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        y = favor_attention(q, k, v, self.projection, key_mask(mask, k), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


def favor_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """An estimate of softmax(q k^T / sqrt(d)) v from random features; `mask` (B, Tk)."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    w = projection.to(dtype)
    lq, lk = (log_features(x.to(dtype), w) for x in (q, k))
    if mask is not None:
        lk = lk.masked_fill(~mask[:, None, :, None], -torch.inf)
    v = v.to(dtype)
    if causal:
        if q.shape[2] != k.shape[2]:
            raise ValueError(f"causal attention of {q.shape[2]} queries needs as many keys, not {k.shape[2]}")
        y, total = causal_sums(lq, lk, v)
    else:
        # A constant for each feature, taken from the keys and given to the queries, and one for each query cancel.
        # With them the largest product of every query is 1, whatever the scale of the activations.
        shift = highest(lk, 2)
        pq, pk = torch.exp(lq + shift - highest(lq + shift, 3)), torch.exp(lk - shift)
        y = torch.einsum("bhqm,bhmd->bhqd", pq, torch.einsum("bhkm,bhkd->bhmd", pk, v))
        total = torch.einsum("bhqm,bhm->bhq", pq, pk.sum(2))[..., None]
    # Where every key is masked both sums are zero.
    return (y / total.masked_fill(total <= 0, 1)).to(q.dtype)


def log_features(x: Tensor, w: Tensor) -> Tensor:
    """Logarithms of the positive features of x / d^(1/4)."""
    x = x / x.shape[-1] ** 0.25
    return torch.einsum("bhtd,md->bhtm", x, w) - 0.5 * (x**2).sum(-1, keepdim=True)


def highest(x: Tensor, axis: int) -> Tensor:
    """The maximum over an axis, which stays as 1; a constant to the gradient, and finite."""
    return x.detach().amax(axis, keepdim=True).clamp(min=torch.finfo(x.dtype).min)


def causal_sums(lq: Tensor, lk: Tensor, v: Tensor, width: int = 64) -> tuple[Tensor, Tensor]:
    """Sums over the keys up to each query, of weights times values and of weights, from logarithms of features.

    The sums of a query are scaled by its largest product with a key up to it. Earlier chunks of `width` positions,
    a power of two, are a state with the highest logarithm of each feature so far.
    """
    t, least = lq.shape[2], torch.finfo(lk.dtype).min
    width = min(width, 1 << (t - 1).bit_length())
    so_far = lk.detach().cummax(2).values
    sees = (so_far > -torch.inf).any(3, keepdim=True)
    lq = (lq - highest(lq + so_far, 3)).masked_fill(~sees, -torch.inf)
    lq, lk = (F.pad(x, (0, 0, 0, -t % width), value=-torch.inf) for x in (lq, lk))
    v = F.pad(v, (0, 0, 0, -t % width))
    lq, lk, v = (x.unflatten(2, (-1, width)) for x in (lq, lk, v))
    ys, totals = near_sums(lq, lk, v)
    state = v.new_zeros(*lk.shape[:2], lk.shape[-1], v.shape[-1])
    count = v.new_zeros(*lk.shape[:2], 1, lk.shape[-1])
    shift = torch.full_like(count, least)
    far: tuple[list[Tensor], list[Tensor]] = ([], [])
    for q, k, x in zip(lq.unbind(2), lk.unbind(2), v.unbind(2), strict=True):
        pq = torch.exp(q + shift)
        far[0].append(torch.einsum("bhqm,bhmd->bhqd", pq, state))
        far[1].append(torch.einsum("bhqm,bhxm->bhqx", pq, count))
        new_shift = torch.maximum(shift, highest(k, 2))
        shrink, pk = torch.exp(shift - new_shift), torch.exp(k - new_shift)
        state = state * shrink.transpose(2, 3) + torch.einsum("bhkm,bhkd->bhmd", pk, x)
        count, shift = count * shrink + pk.sum(2, keepdim=True), new_shift
    y, total = (a.flatten(2, 3) + torch.cat(b, 2) for a, b in zip((ys, totals), far, strict=True))
    return y[:, :, :t], total[:, :, :t]


def near_sums(lq: Tensor, lk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`causal_sums` within chunks (..., w, m) whose width is a power of two.

    The highest keys of a chunk scale its queries and keys, unless a later key is so much higher than those which a
    query sees that their products would leave the range of the dtype.
    """
    shift = highest(lk, -2)
    in_range = bool((lq + shift).max() < 0.7 * math.log(torch.finfo(lq.dtype).max))
    return _at_once(lq, lk, v) if in_range else _by_halves(lq, lk, v)


def _at_once(lq: Tensor, lk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    shift = highest(lk, -2)
    weights = torch.einsum("...qm,...km->...qk", torch.exp(lq + shift), torch.exp(lk - shift)).tril()
    return weights @ v, weights.sum(-1, keepdim=True)


def _by_halves(lq: Tensor, lk: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The queries of every second half, second and fourth quarter and so on meet the keys of the part before, all of
    which they see: the highest of these keys scales both without loss.
    """
    total = torch.exp(lq + lk).sum(-1, keepdim=True)
    y = total * v
    half, width = 1, lq.shape[-2]
    while half < width:
        pairs = [x.unflatten(-2, (-1, 2, half)) for x in (lq, lk, v)]
        queries, (keys, values) = pairs[0][..., 1, :, :], (x[..., 0, :, :] for x in pairs[1:])
        shift = highest(keys, -2)
        weights = torch.einsum("...qm,...km->...qk", torch.exp(queries + shift), torch.exp(keys - shift))
        for_first = torch.zeros_like(values), torch.zeros_like(values[..., :1])
        for_second = weights @ values, weights.sum(-1, keepdim=True)
        both = (torch.stack(x, -3) for x in zip(for_first, for_second, strict=True))
        y, total = (a + b.reshape(a.shape) for a, b in zip((y, total), both, strict=True))
        half *= 2
    return y, total


def orthogonal_features(n_features: int, dim: int) -> Tensor:
    """Gaussian directions (n_features, dim), orthogonal in blocks of dim, with independent lengths."""
    if n_features < 1:
        raise ValueError(f"n_features must be at least 1, not {n_features}")
    blocks, r = torch.linalg.qr(torch.randn(-(-n_features // dim), dim, dim))
    # Without the signs the directions would not be uniform, and the estimate biased (Mezzadri 2007).
    blocks = blocks * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    lengths = torch.randn(n_features, dim).norm(dim=-1, keepdim=True)
    return blocks.transpose(1, 2).reshape(-1, dim)[:n_features] * lengths


class LinformerAttention(Module):
    """Keys and values of T positions projected to `proj_len` (Wang et al. 2020, arXiv:2006.04768), cost T.

    query (B, Tq, D), key and value (B, Tk, D) -> (B, Tq, D). All heads share the projections `proj_k` and
    `proj_v`; shorter sequences use their first Tk columns. The mask is (B, Tk); a row with every key masked
    gives the bias of `w_o`. Heads that do not divide the width, masks per query and Tk beyond `max_len` are
    ValueErrors.
    """

    def __init__(
        self, d_model: int, n_heads: int, dropout: float = 0.1, proj_len: int = 256, max_len: int = 5000
    ):
        super().__init__()
        self.n_heads, self.head_dim, self.max_len = n_heads, check_heads(d_model, n_heads), max_len
        self.w_q = Linear(d_model, d_model)
        self.w_k = Linear(d_model, d_model)
        self.w_v = Linear(d_model, d_model)
        self.w_o = Linear(d_model, d_model)
        self.proj_k = Linear(max_len, proj_len, bias=False)
        self.proj_v = Linear(max_len, proj_len, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        key = query if key is None else key
        value = key if value is None else value
        check_length(key.shape[1], self.max_len)
        q, k, v = (
            split_heads(layer(x), self.n_heads)
            for layer, x in ((self.w_q, query), (self.w_k, key), (self.w_v, value))
        )
        mask = key_mask(mask, k)
        if mask is not None:
            k, v = (x.masked_fill(~mask[:, None, :, None], 0) for x in (k, v))
        k = torch.einsum("bhkd,pk->bhpd", k, self.proj_k.weight[:, : k.shape[2]])
        v = torch.einsum("bhkd,pk->bhpd", v, self.proj_v.weight[:, : v.shape[2]])
        scores = torch.einsum("bhqd,bhpd->bhqp", q, k) / math.sqrt(self.head_dim)
        weights = scores.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).to(q.dtype)
        return self.dropout(self.w_o(join_heads(torch.einsum("bhqp,bhpd->bhqd", weights, v))))


class ReformerAttention(Module):
    """Self-attention within hash buckets, query and key shared (Kitaev et al. 2020, arXiv:2001.04451).

    x (B, T, D), mask (B, T) -> (B, T, D). Each of `n_hashes` rounds sorts the positions by bucket, cuts them
    into chunks of `bucket_size`, and lets a position attend to its own chunk and the one before; the result
    is softmax attention over all keys of any round, itself only if there is no other key. Cost T log T: there
    are about T / bucket_size buckets, and where they are more than 2 bucket_size a bucket is a pair, or more,
    of smaller hashes, or hashing alone would cost T^2. The buffer `rotations` (head_dim, n_hashes, columns)
    serves lengths up to `max_len`. Heads that do not divide the width, masks per query and T beyond `max_len`
    are ValueErrors.
    """

    rotations: Tensor

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        dropout: float = 0.1,
        bucket_size: int = 64,
        n_hashes: int = 4,
        max_len: int = 5000,
        causal: bool = False,
    ):
        super().__init__()
        if bucket_size < 1 or n_hashes < 1:
            raise ValueError(f"bucket_size and n_hashes must be at least 1, not {bucket_size}, {n_hashes}")
        self.n_heads, self.head_dim, self.max_len = n_heads, check_heads(d_model, n_heads), max_len
        self.bucket_size, self.causal = bucket_size, causal
        self.w_qk = Linear(d_model, d_model)
        self.w_v = Linear(d_model, d_model)
        self.w_o = Linear(d_model, d_model)
        self.dropout = Dropout(dropout)
        columns = most_columns(max_len, bucket_size)
        self.register_buffer("rotations", torch.randn(self.head_dim, n_hashes, columns))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_length(x.shape[1], self.max_len)
        q, v = split_heads(self.w_qk(x), self.n_heads), split_heads(self.w_v(x), self.n_heads)
        parts, half = split_buckets(x.shape[1], self.bucket_size)
        rotations = self.rotations[..., : parts * half].unflatten(-1, (parts, half))
        y = lsh_attention(q, v, rotations, self.bucket_size, key_mask(mask, q), self.causal)
        return self.dropout(self.w_o(join_heads(y)))


def lsh_attention(
    q: Tensor, v: Tensor, rotations: Tensor, width: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """`ReformerAttention` between the projections: q, v (B, H, T, d) -> (B, H, T, d)."""
    t, padding = q.shape[2], -q.shape[2] % width
    dtype = torch.promote_types(q.dtype, torch.float32)
    valid = torch.ones(len(q), t, dtype=torch.bool, device=q.device) if mask is None else mask
    buckets = hash_buckets(q.detach().to(dtype), rotations.to(dtype))
    # Masked positions go last, those that pad the last chunk behind them.
    last = (2 * rotations.shape[-1]) ** rotations.shape[-2]
    buckets = torch.where(valid[:, None, None], buckets, last)
    buckets = F.pad(buckets, (0, padding), value=last + 1)
    order = torch.argsort(buckets, dim=-1, stable=True)
    rank = order.argsort(-1)
    chunk = rank // width
    keys = F.normalize(q.to(dtype), dim=-1)
    q, keys, v = (F.pad(x, (0, 0, 0, padding))[:, :, None] for x in (q, keys, v))
    qs, ks, vs = (
        torch.take_along_dim(x, order[..., None], 3).unflatten(3, (-1, width)) for x in (q, keys, v)
    )
    positions = order.unflatten(3, (-1, width))
    ks, vs, k_positions = with_previous(ks), with_previous(vs), with_previous(positions)
    scores = torch.einsum("bhrnqd,bhrnkd->bhrnqk", qs.to(dtype), ks) / math.sqrt(q.shape[-1])
    i, j = positions[..., None], k_positions[..., None, :]
    rounds = shared_rounds(chunk, positions, k_positions)
    scores = torch.where(i == j, SELF_SCORE, scores) - torch.log(rounds.clamp(min=1).to(dtype))
    key_valid = torch.take_along_dim(F.pad(valid, (0, padding))[:, None, None], k_positions.flatten(3), 3)
    # No chunk precedes the first, and what pads the last one is no position.
    first = torch.arange(positions.shape[3], device=q.device)[:, None, None] == 0
    allowed = ~(first & (torch.arange(2 * width, device=q.device) < width)) & (j < t)
    allowed = allowed & (j <= i) if causal else allowed
    scores = mask_scores(scores, key_valid.unflatten(3, (-1, 2 * width))[..., None, :], allowed)
    mass = scores.logsumexp(-1, keepdim=True)
    y = torch.einsum("bhrnqk,bhrnkd->bhrnqd", torch.exp(scores - mass), vs.to(dtype))
    y = torch.take_along_dim(y.flatten(3, 4), rank[..., None], 3)
    mass = torch.take_along_dim(mass.flatten(3, 4), rank[..., None], 3)
    return (mass.softmax(2) * y).sum(2)[:, :, :t].to(q.dtype)


def hash_buckets(x: Tensor, rotations: Tensor) -> Tensor:
    """The bucket (B, H, R, T) of every position in every round: of each part the nearest of the directions
    +-rotations (d, R, parts, m)."""
    rotated = torch.einsum("bhtd,drnm->bhrtnm", x, rotations)
    nearest = torch.cat((rotated, -rotated), -1).argmax(-1)
    parts, count = rotations.shape[-2], 2 * rotations.shape[-1]
    return functools.reduce(
        lambda number, i: number * count + nearest[..., i], range(1, parts), nearest[..., 0]
    )


def shared_rounds(chunk: Tensor, positions: Tensor, k_positions: Tensor) -> Tensor:
    """In how many rounds a query attends to a key, for the pairs (B, H, R, n, w, 2 w) of every round."""
    rounds: Tensor | int = 0
    for other in range(chunk.shape[2]):
        chunks = chunk[:, :, other, None]
        query = torch.take_along_dim(chunks, positions.flatten(3), 3).reshape(positions.shape)[..., None]
        key = torch.take_along_dim(chunks, k_positions.flatten(3), 3).reshape(k_positions.shape)[..., None, :]
        rounds = rounds + ((query == key) | (query == key + 1)).long()
    assert isinstance(rounds, Tensor)
    return rounds


def with_previous(x: Tensor) -> Tensor:
    """Every chunk (axis 3) behind the one before it, joined along axis 4; the first behind the last."""
    return torch.cat((x.roll(1, 3), x), 4)


def split_buckets(length: int, bucket_size: int) -> tuple[int, int]:
    """How many parts a bucket's number has for a sequence length, and half of how many values each part takes."""
    half, parts = max(1, -(-length // (2 * bucket_size))), 1
    while (2 * bucket_size) ** parts < 2 * half:
        parts += 1
    if parts == 1:
        return 1, half
    part = 1
    while (2 * part) ** parts < 2 * half:
        part += 1
    return parts, part


def most_columns(max_len: int, bucket_size: int) -> int:
    """How many rotations serve every length up to `max_len`."""
    parts, half = split_buckets(max_len, bucket_size)
    return max(parts * half, (parts - 1) * bucket_size)


def check_heads(d_model: int, n_heads: int) -> int:
    """The size of a head; heads that do not divide the width are a ValueError."""
    if d_model % n_heads:
        raise ValueError(f"n_heads {n_heads} does not divide d_model {d_model}")
    return d_model // n_heads


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) as (B, H, T, d)."""
    return x.reshape(*x.shape[:2], n_heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, d) as (B, T, D)."""
    return x.transpose(1, 2).flatten(2)
