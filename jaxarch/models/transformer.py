"""Encoder-decoder transformer. Vaswani et al. 2017, arXiv:1706.03762.

Unlike the paper's, embeddings are not scaled, and the encoder, the decoder and the output layer share no weights.
Every matrix starts with Xavier's uniform distribution. With `cross_attention=False` the decoder does not attend to
the encoder; with `causal=False` it attends as its mask alone says.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch import nn
from jaxarch.errors import UsageError


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of the model; source and target share one vocabulary."""

    vocab_size: int = 10000
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 6
    d_ff: int = 2048
    dropout: float = 0.1
    max_seq_len: int = 512
    pad_token_id: int = 0
    cross_attention: bool = True
    causal: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise UsageError(f"pad_token_id {self.pad_token_id} is not in [0, {self.vocab_size})")


class DecoderBlock(nn.Module):
    """x (B, T, D), encoder_output (B, S, D) -> (B, T, D), with `cache` also the cache; post-norm, ReLU.

    x = norm1(x + attention), norm3(x + cross_attention), norm2(x + ff). Causal, if the config is.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        d_model, dropout = config.d_model, config.dropout
        causal = nn.AttentionConfig(causal=config.causal)
        self.attention = nn.MultiHeadAttention(d_model, config.n_heads, dropout, config=causal, rngs=rngs)
        self.norm1 = nn.LayerNorm(d_model, rngs=rngs)
        self.cross_attention = self.norm3 = nnx.data(None)
        if config.cross_attention:
            self.cross_attention = nn.MultiHeadAttention(d_model, config.n_heads, dropout, rngs=rngs)
            self.norm3 = nn.LayerNorm(d_model, rngs=rngs)
        self.ff = nn.Sequential(
            nn.Linear(d_model, config.d_ff, rngs=rngs),
            nn.Activation("relu"),
            nn.Dropout(dropout, rngs=rngs),
            nn.Linear(config.d_ff, d_model, rngs=rngs),
        )
        self.norm2 = nn.LayerNorm(d_model, rngs=rngs)
        self.dropout = nn.Dropout(dropout, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        encoder_output: Float[Array, "b s d"],
        self_mask: Array | None = None,
        cross_mask: Array | None = None,
        cache: nn.Cache | None = None,
    ) -> Any:  # (B, T, D); with a cache also the new cache
        y: Any = self.attention(x, mask=self_mask, cache=cache)
        if cache is not None:
            y, cache = y
        x = self.norm1(x + self.dropout(y))
        if self.cross_attention is not None and self.norm3 is not None:
            y = self.cross_attention(x, encoder_output, encoder_output, cross_mask)
            x = self.norm3(x + self.dropout(y))
        x = self.norm2(x + self.dropout(self.ff(x)))
        return x if cache is None else (x, cache)


def TransformerBlock(config: TransformerConfig, *, rngs: nnx.Rngs) -> nn.TransformerBlock:
    """A block of the config's sizes: x (B, T, D), mask -> (B, T, D); post-norm, ReLU."""
    sizes = config.d_model, config.n_heads, config.d_ff
    return nn.TransformerBlock(*sizes, config.dropout, "relu", rngs=rngs)


class Encoder(nn.Module):
    """ids (B, S), mask (B, S) True where a token is real -> (B, S, D)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model, rngs=rngs)
        self.positional_encoding = nn.PositionalEncoding(
            config.d_model, config.max_seq_len, config.dropout, rngs=rngs
        )
        self.layers: Any = nn.ModuleList(
            [TransformerBlock(config, rngs=rngs) for _ in range(config.n_layers)]
        )

    def __call__(self, x: Int[Array, "b s"], mask: Array | None = None) -> Float[Array, "b s d"]:
        x = self.positional_encoding(self.word_embedding(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Decoder(nn.Module):
    """ids (B, T), encoder_output (B, S, D), masks (B, T) and (B, S) -> (B, T, D), with `cache` also the cache."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model, rngs=rngs)
        self.positional_encoding = nn.PositionalEncoding(
            config.d_model, config.max_seq_len, config.dropout, rngs=rngs
        )
        self.layers: Any = nn.ModuleList([DecoderBlock(config, rngs=rngs) for _ in range(config.n_layers)])

    def __call__(
        self,
        x: Int[Array, "b t"],
        encoder_output: Float[Array, "b s d"],
        self_mask: Array | None = None,
        cross_mask: Array | None = None,
        cache: tuple[nn.Cache, ...] | None = None,
    ) -> Any:  # (B, T, D); with a cache also the new cache
        x = self.positional_encoding(self.word_embedding(x), 0 if cache is None else cache[0].length)
        if cache is None:
            for layer in self.layers:
                x = layer(x, encoder_output, self_mask, cross_mask)
            return x
        new_cache = []
        for layer, old in zip(self.layers, cache, strict=True):
            x, new = layer(x, encoder_output, self_mask, cross_mask, old)
            new_cache.append(new)
        return x, tuple(new_cache)


class Transformer(nn.Module):
    """Source ids (B, S), target ids (B, T) -> logits (B, T, V): at t those of the target's token t + 1.

    Padding (`pad_token_id`) is masked, and so are later target positions for earlier ones, unless `src_mask` and
    `tgt_mask` say which: (B, S), (B, T, T) or broadcast to (B, H, T, T), True = may attend. With `causal` of the
    config no mask lets a position attend to later ones. `encode` and `decode` are the same function, a few target
    tokens at a time: see `jaxarch.generate.translate`.

    Raises:
        UsageError: as MultiHeadAttention.
        DataError: in the call, ids outside the vocabulary, a sequence beyond `max_seq_len`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.output_layer = nn.Linear(config.d_model, config.vocab_size, rngs=rngs)
        nn.initialize_matrices(self, "xavier", rngs=rngs)

    def create_padding_mask(self, x: Int[Array, "b s"]) -> Bool[Array, "b 1 1 s"]:
        """ids (B, S) -> (B, 1, 1, S), False on padding."""
        return self._real(x)[:, None, None]

    def create_look_ahead_mask(self, size: int) -> Bool[Array, "t t"]:
        """(size, size), True where a position may attend: to itself and to earlier ones."""
        return jnp.tril(jnp.ones((size, size), bool))

    def __call__(
        self,
        src: Int[Array, "b s"],
        tgt: Int[Array, "b t"],
        src_mask: Array | None = None,
        tgt_mask: Array | None = None,
    ) -> Float[Array, "b t v"]:
        src_mask = self.create_padding_mask(src) if src_mask is None else src_mask
        if tgt_mask is None:
            tgt_mask = self.create_padding_mask(tgt)
            if not self.config.causal:
                tgt_mask = tgt_mask & self.create_look_ahead_mask(tgt.shape[1])
        memory = self.encoder(src, src_mask)
        return self.output_layer(self.decoder(tgt, memory, tgt_mask, src_mask))

    def encode(self, src: Int[Array, "b s"]) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"]]:
        """The memory (B, S, D) that the decoder attends to, and its mask (B, S), False on padding."""
        return self.encoder(src, self._real(src)), self._real(src)

    def init_cache(self, batch: int, max_len: int | None = None) -> tuple[nn.Cache, ...]:
        """An empty cache for `decode`, for `max_len` positions (`max_seq_len` if not given).

        Raises:
            DataError: `max_len` exceeds the model's.
        """
        max_len = self.config.max_seq_len if max_len is None else max_len
        nn.check_length(max_len, self.config.max_seq_len)
        return tuple(layer.attention.init_cache(batch, max_len) for layer in self.decoder.layers)

    def decode(
        self,
        tgt: Int[Array, "b t"],
        cache: tuple[nn.Cache, ...],
        memory: Float[Array, "b s d"],
        memory_mask: Array | None = None,
    ) -> tuple[Float[Array, "b t v"], tuple[nn.Cache, ...]]:
        """The logits of the next target tokens, none of them padding, and the cache with them appended."""
        x, cache = self.decoder(tgt, memory, None, memory_mask, cache)
        return self.output_layer(x), cache

    def _real(self, ids: Int[Array, "b t"]) -> Bool[Array, "b t"]:
        return ids != self.config.pad_token_id
