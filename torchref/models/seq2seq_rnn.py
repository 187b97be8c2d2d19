"""Sequence to sequence with GRUs, attention and teacher forcing (Sutskever et al. 2014; Luong et al. 2015).

The decoder attends with its new state and does not feed the result back into the GRU, so that under full
teacher forcing it runs over the whole target at once.
"""

import torch
from torch import Tensor

from torchref import nn

ATTENTIONS = ("dot", "general", "concat")


class Attention(nn.Module):
    """query (B, T, dim), memory (B, S, dim), mask (B, S) True where valid, or None -> context (B, T, dim).

    With the weights (B, T, S). Luong's scores: q.m, q.Wm, or v.tanh(Wq + Um).
    """

    def __init__(self, dim: int, attention_type: str):
        super().__init__()
        concat = attention_type == "concat"
        self.query = nn.Linear(dim, dim, bias=False) if concat else None
        self.key = None if attention_type == "dot" else nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, 1, bias=False) if concat else None

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        key = memory if self.key is None else self.key(memory)
        if self.query is None or self.v is None:
            scores = query @ key.transpose(1, 2)
        else:
            scores = self.v((self.query(query)[:, :, None] + key[:, None]).tanh())[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return weights @ memory, weights


class Seq2SeqRNN(nn.Module):
    """src (B, S), tgt (B, T) that begins with the start token, lengths of src (B,) in [1, S] or None, coins.

    -> logits (B, T, tgt_vocab_size), of the token after each. Where `coins` (T,) or (B, T) bool is True the
    decoder's input is tgt (teacher forcing), elsewhere its own likeliest token. The first input is always
    that of tgt; without coins all are. `draw_coins` draws them. An unknown attention_type is a ValueError.
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        attention_type: str = "general",
        dropout: float = 0.1,
    ):
        super().__init__()
        if attention_type not in ATTENTIONS:
            raise ValueError(f"unknown attention_type {attention_type!r}: known: {', '.join(ATTENTIONS)}")
        self.src_embedding = nn.Embedding(src_vocab_size, embed_dim)
        self.encoder = nn.GRU(embed_dim, hidden_size, batch_first=True, bidirectional=True)
        self.memory = nn.Linear(2 * hidden_size, hidden_size)
        self.bridge = nn.Linear(2 * hidden_size, hidden_size)
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, embed_dim)
        self.decoder = nn.GRU(embed_dim, hidden_size, batch_first=True)
        self.attention = Attention(hidden_size, attention_type)
        self.combine = nn.Linear(2 * hidden_size, hidden_size)
        self.fc = nn.Linear(hidden_size, tgt_vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        lengths: Tensor | None = None,
        coins: Tensor | None = None,
        return_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        memory, state, mask = self.encode(src, lengths)
        embedded = self.tgt_embedding(tgt)
        # One mask for all steps, drawn before them.
        keep = self.dropout(torch.ones_like(embedded))
        if coins is None:
            logits, _, weights = self.decode(embedded * keep, state, memory, mask)
            return (logits, weights) if return_attention else logits
        coins = coins.expand(tgt.shape)
        rows, row_weights, guess = [], [], tgt[:, 0]
        for t in range(tgt.shape[1]):
            token = tgt[:, t] if t == 0 else torch.where(coins[:, t], tgt[:, t], guess)
            x = (self.tgt_embedding(token) * keep[:, t])[:, None]
            row, state, weight = self.decode(x, state, memory, mask)
            guess = row[:, 0].argmax(-1)
            rows.append(row)
            row_weights.append(weight)
        logits, weights = torch.cat(rows, 1), torch.cat(row_weights, 1)
        return (logits, weights) if return_attention else logits

    def encode(self, src: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """-> memory (B, S, hidden_size), the decoder's first state (1, B, hidden_size), mask (B, S) or None."""
        hidden, final = self.encoder(self.dropout(self.src_embedding(src)), lengths=lengths)
        state = self.bridge(torch.cat([final[0], final[1]], -1)).tanh()[None]
        mask = None if lengths is None else nn.length_mask(lengths, src.shape[1])
        return self.memory(hidden), state, mask

    def decode(
        self, x: Tensor, state: Tensor, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedded tokens (B, T, embed_dim) from a state on -> logits, state, weights (B, T, S)."""
        hidden, state = self.decoder(x, state)
        context, weights = self.attention(hidden, memory, mask)
        return self.fc(self.combine(torch.cat([context, hidden], -1)).tanh()), state, weights

    @torch.no_grad()
    def greedy(
        self, src: Tensor, start: int, end: int, max_length: int, lengths: Tensor | None = None
    ) -> Tensor:
        """The likeliest token at every step: (B, max_length) ids, `end` after the first `end`. In eval mode."""
        return self.beam(src, start, end, max_length, 1, lengths)[0]

    @torch.no_grad()
    def beam(
        self,
        src: Tensor,
        start: int,
        end: int,
        max_length: int,
        beams: int = 4,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The likeliest sequence found by beam search: (B, max_length) ids, (B,) log-probabilities.

        Its end is `end` repeated; a finished beam stays as it is. No length penalty. In eval mode.
        """
        memory, state, mask = self.encode(src, lengths)
        batch, vocab = src.shape[0], self.fc.out_features
        # Beams are adjacent in the batch: row b * beams + k.
        memory, state = memory.repeat_interleave(beams, 0), state.repeat_interleave(beams, 1)
        mask = None if mask is None else mask.repeat_interleave(beams, 0)
        scores = torch.full((batch, beams), torch.finfo(memory.dtype).min, dtype=memory.dtype)
        scores[:, 0] = 0
        token, ids = torch.full((batch * beams,), start), torch.full((batch, beams, max_length), end)
        done = torch.zeros(batch, beams, dtype=torch.bool)
        for t in range(max_length):
            row, state, _ = self.decode(self.tgt_embedding(token)[:, None], state, memory, mask)
            step = row[:, 0].log_softmax(-1).view(batch, beams, vocab)
            closed = torch.full_like(step, -torch.inf)
            closed[..., end] = 0
            total = scores[..., None] + torch.where(done[..., None], closed, step)
            scores, best = total.view(batch, -1).topk(beams)
            source, token = best // vocab, best % vocab
            ids = ids.take_along_dim(source[..., None], 1)
            ids[..., t] = token
            done = done.take_along_dim(source, 1) | (token == end)
            state = state[:, (source + torch.arange(batch)[:, None] * beams).flatten()]
            token = token.flatten()
        return ids[:, 0], scores[:, 0]


def draw_coins(ratio: float, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Bools of `shape`, True (teacher forcing) with probability `ratio`."""
    return torch.rand(shape, generator=generator) < ratio
