"""Sequence to sequence with GRUs, attention and teacher forcing (Sutskever et al. 2014; Luong et al. 2015).

The decoder attends with its new state and does not feed the result back into the GRU, so that under full
teacher forcing it runs over the whole target at once.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxarch import nn
from jaxarch.errors import unknown

ATTENTIONS = ("dot", "general", "concat")
Search = tuple[Array, Array, Array, Array, Array]  # state, scores, token, ids, done
Memory = tuple[Float[Array, "b s h"], Float[Array, "1 b h"], Bool[Array, "b s"] | None]


class Attention(nn.Module):
    """query (B, T, dim), memory (B, S, dim), mask (B, S) True where valid, or None -> context (B, T, dim).

    With the weights (B, T, S). Luong's scores: q.m, q.Wm, or v.tanh(Wq + Um).
    """

    def __init__(self, dim: int, attention_type: str, *, rngs: nnx.Rngs):
        concat = attention_type == "concat"
        self.query = nn.Linear(dim, dim, bias=False, rngs=rngs) if concat else nnx.data(None)
        self.key = nnx.data(None) if attention_type == "dot" else nn.Linear(dim, dim, bias=False, rngs=rngs)
        self.v = nn.Linear(dim, 1, bias=False, rngs=rngs) if concat else nnx.data(None)

    def __call__(
        self, query: Float[Array, "b t h"], memory: Float[Array, "b s h"], mask: Bool[Array, "b s"] | None
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b t s"]]:
        key = memory if self.key is None else self.key(memory)
        if self.query is None or self.v is None:
            scores = query @ key.swapaxes(1, 2)
        else:
            scores = self.v(jnp.tanh(self.query(query)[:, :, None] + key[:, None]))[..., 0]
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
        weights = jax.nn.softmax(scores, -1)
        return weights @ memory, weights


class Seq2SeqRNN(nn.Module):
    """src (B, S), tgt (B, T) that begins with the start token, lengths of src (B,) in [1, S] or None, coins.

    -> logits (B, T, tgt_vocab_size), of the token after each. Where `coins` (T,) or (B, T) bool is True the
    decoder's input is tgt (teacher forcing), elsewhere its own likeliest token. The first input is always
    that of tgt; without coins all are. `draw_coins` draws them.

    Raises:
        UsageError: unknown attention_type; the known ones are listed.
        DataError: outside jit, an id or a length out of range.
    """

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        attention_type: str = "general",
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        if attention_type not in ATTENTIONS:
            raise unknown("attention_type", attention_type, ATTENTIONS)
        self.src_embedding = nn.Embedding(src_vocab_size, embed_dim, rngs=rngs)
        self.encoder = nn.GRU(embed_dim, hidden_size, batch_first=True, bidirectional=True, rngs=rngs)
        self.memory = nn.Linear(2 * hidden_size, hidden_size, rngs=rngs)
        self.bridge = nn.Linear(2 * hidden_size, hidden_size, rngs=rngs)
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, embed_dim, rngs=rngs)
        self.decoder = nn.GRU(embed_dim, hidden_size, batch_first=True, rngs=rngs)
        self.attention = Attention(hidden_size, attention_type, rngs=rngs)
        self.combine = nn.Linear(2 * hidden_size, hidden_size, rngs=rngs)
        self.fc = nn.Linear(hidden_size, tgt_vocab_size, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)
        self.vocab = tgt_vocab_size

    def __call__(
        self,
        src: Int[Array, "b s"],
        tgt: Int[Array, "b t"],
        lengths: Int[Array, " b"] | None = None,
        coins: Bool[Array, "*coins t"] | None = None,
        return_attention: bool = False,
    ) -> Float[Array, "b t v"] | tuple[Float[Array, "b t v"], Float[Array, "b t s"]]:
        memory, state, mask = self.encode(src, lengths)
        embedded = self.tgt_embedding(tgt)
        # One mask for all steps, drawn before them.
        keep = self.dropout(jnp.ones_like(embedded))
        if coins is None:
            logits, _, weights = self.decode(embedded * keep, state, memory, mask)
            return (logits, weights) if return_attention else logits
        coins = jnp.broadcast_to(coins, tgt.shape).at[:, 0].set(True)

        def step(
            carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]
        ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            (state, guess), (target, coin, keep_t) = carry, inputs
            x = (self.tgt_embedding(jnp.where(coin, target, guess)) * keep_t)[:, None]
            row, state, weight = self.decode(x, state, memory, mask)
            return (state, row[:, 0].argmax(-1).astype(tgt.dtype)), (row[:, 0], weight[:, 0])

        steps = (tgt.T, coins.T, keep.swapaxes(0, 1))
        _, (logits, weights) = lax.scan(step, (state, tgt[:, 0]), steps)
        logits, weights = logits.swapaxes(0, 1), weights.swapaxes(0, 1)
        return (logits, weights) if return_attention else logits

    def encode(self, src: Int[Array, "b s"], lengths: Int[Array, " b"] | None = None) -> Memory:
        """-> memory (B, S, hidden_size), the decoder's first state (1, B, hidden_size), mask (B, S) or None."""
        hidden, final = self.encoder(self.dropout(self.src_embedding(src)), lengths=lengths)
        state = jnp.tanh(self.bridge(jnp.concatenate([final[0], final[1]], -1)))[None]
        mask = None if lengths is None else nn.length_mask(lengths, src.shape[1])
        return self.memory(hidden), state, mask

    def decode(
        self,
        x: Float[Array, "b t e"],
        state: Float[Array, "1 b h"],
        memory: Float[Array, "b s h"],
        mask: Bool[Array, "b s"] | None,
    ) -> tuple[Float[Array, "b t v"], Float[Array, "1 b h"], Float[Array, "b t s"]]:
        """Embedded tokens (B, T, embed_dim) from a state on -> logits, state, weights (B, T, S)."""
        hidden, state = self.decoder(x, state)
        context, weights = self.attention(hidden, memory, mask)
        combined = jnp.tanh(self.combine(jnp.concatenate([context, hidden], -1)))
        return self.fc(combined), state, weights

    def greedy(
        self,
        src: Int[Array, "b s"],
        start: int,
        end: int,
        max_length: int,
        lengths: Int[Array, " b"] | None = None,
    ) -> Int[Array, "b n"]:
        """The likeliest token at every step: (B, max_length) ids, `end` after the first `end`. In eval mode."""
        return self.beam(src, start, end, max_length, 1, lengths)[0]

    def beam(
        self,
        src: Int[Array, "b s"],
        start: int,
        end: int,
        max_length: int,
        beams: int = 4,
        lengths: Int[Array, " b"] | None = None,
    ) -> tuple[Int[Array, "b n"], Float[Array, " b"]]:
        """The likeliest sequence found by beam search: (B, max_length) ids, (B,) log-probabilities.

        Its end is `end` repeated; a finished beam stays as it is. No length penalty. In eval mode.
        """
        memory, state, mask = self.encode(src, lengths)
        batch, vocab = src.shape[0], self.vocab
        # Beams are adjacent in the batch: row b * beams + k.
        memory, state = jnp.repeat(memory, beams, 0), jnp.repeat(state, beams, 1)
        mask = None if mask is None else jnp.repeat(mask, beams, 0)
        scores = jnp.full((batch, beams), jnp.finfo(memory.dtype).min, memory.dtype).at[:, 0].set(0)
        token, ids = jnp.full((batch * beams,), start), jnp.full((batch, beams, max_length), end)
        done = jnp.zeros((batch, beams), bool)

        def step(carry: Search, t: Int[Array, ""]) -> tuple[Search, None]:
            state, scores, token, ids, done = carry
            row, state, _ = self.decode(self.tgt_embedding(token)[:, None], state, memory, mask)
            step = jax.nn.log_softmax(row[:, 0], -1).reshape(batch, beams, vocab)
            closed = jnp.full_like(step, -jnp.inf).at[..., end].set(0)
            total = scores[..., None] + jnp.where(done[..., None], closed, step)
            scores, best = lax.top_k(total.reshape(batch, -1), beams)
            source, token = best // vocab, (best % vocab).astype(ids.dtype)
            ids = jnp.take_along_axis(ids, source[..., None], 1)
            ids = ids.at[..., t].set(token)
            done = jnp.take_along_axis(done, source, 1) | (token == end)
            state = state[:, (source + jnp.arange(batch, dtype=source.dtype)[:, None] * beams).reshape(-1)]
            return (state, scores, token.reshape(-1), ids, done), None

        (_, scores, _, ids, _), _ = lax.scan(step, (state, scores, token, ids, done), jnp.arange(max_length))
        return ids[:, 0], scores[:, 0]


def draw_coins(key: Array, ratio: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """Bools of `shape`, True (teacher forcing) with probability `ratio`."""
    return jax.random.bernoulli(key, ratio, shape)
