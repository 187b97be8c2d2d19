"""Encoder-decoder transformer. Vaswani et al. 2017, arXiv:1706.03762.

Unlike the paper's, embeddings are not scaled, and the encoder, the decoder and the output layer share no weights.
Every matrix starts with Xavier's uniform distribution. With `cross_attention=False` the decoder does not attend to
the encoder; with `causal=False` it attends as its mask alone says.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchref import nn


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
            raise ValueError(f"pad_token_id {self.pad_token_id} is not in [0, {self.vocab_size})")


class DecoderBlock(nn.Module):
    """x (B, T, D), encoder_output (B, S, D) -> (B, T, D), with `cache` also the cache; post-norm, ReLU.

    x = norm1(x + attention), norm3(x + cross_attention), norm2(x + ff). Causal, if the config is.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        d_model, dropout = config.d_model, config.dropout
        causal = nn.AttentionConfig(causal=config.causal)
        self.attention = nn.MultiHeadAttention(d_model, config.n_heads, dropout, config=causal)
        self.norm1 = nn.LayerNorm(d_model)
        self.cross_attention = self.norm3 = None
        if config.cross_attention:
            self.cross_attention = nn.MultiHeadAttention(d_model, config.n_heads, dropout)
            self.norm3 = nn.LayerNorm(d_model)
        self.ff = nn.Sequential(
            nn.Linear(d_model, config.d_ff),
            nn.Activation("relu"),
            nn.Dropout(dropout),
            nn.Linear(config.d_ff, d_model),
        )
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        encoder_output: Tensor,
        self_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: nn.Cache | None = None,
    ) -> Tensor | tuple:
        y: Any = self.attention(x, mask=self_mask, cache=cache)
        if cache is not None:
            y, cache = y
        x = self.norm1(x + self.dropout(y))
        if self.cross_attention is not None and self.norm3 is not None:
            y = self.cross_attention(x, encoder_output, encoder_output, cross_mask)
            x = self.norm3(x + self.dropout(y))
        x = self.norm2(x + self.dropout(self.ff(x)))
        return x if cache is None else (x, cache)


def TransformerBlock(config: TransformerConfig) -> nn.TransformerBlock:
    """A block of the config's sizes: x (B, T, D), mask -> (B, T, D); post-norm, ReLU."""
    return nn.TransformerBlock(config.d_model, config.n_heads, config.d_ff, config.dropout, "relu")


class Encoder(nn.Module):
    """ids (B, S), mask (B, S) True where a token is real -> (B, S, D)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positional_encoding = nn.PositionalEncoding(config.d_model, config.max_seq_len, config.dropout)
        self.layers: Any = nn.ModuleList([TransformerBlock(config) for _ in range(config.n_layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.positional_encoding(self.word_embedding(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Decoder(nn.Module):
    """ids (B, T), encoder_output (B, S, D), masks (B, T) and (B, S) -> (B, T, D), with `cache` also the cache."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positional_encoding = nn.PositionalEncoding(config.d_model, config.max_seq_len, config.dropout)
        self.layers: Any = nn.ModuleList([DecoderBlock(config) for _ in range(config.n_layers)])

    def forward(
        self,
        x: Tensor,
        encoder_output: Tensor,
        self_mask: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cache: tuple[nn.Cache, ...] | None = None,
    ) -> Tensor | tuple:
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
    tokens at a time: see `torchref.generate.translate`. Ids
    outside the vocabulary are an IndexError, sequences beyond `max_seq_len` a ValueError.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.output_layer = nn.Linear(config.d_model, config.vocab_size)
        nn.initialize_matrices(self, "xavier")

    def create_padding_mask(self, x: Tensor) -> Tensor:
        """ids (B, S) -> (B, 1, 1, S), False on padding."""
        return self._real(x)[:, None, None]

    def create_look_ahead_mask(self, size: int) -> Tensor:
        """(size, size), True where a position may attend: to itself and to earlier ones."""
        return torch.ones(size, size, dtype=torch.bool).tril()

    def forward(
        self, src: Tensor, tgt: Tensor, src_mask: Tensor | None = None, tgt_mask: Tensor | None = None
    ) -> Tensor:
        src_mask = self.create_padding_mask(src) if src_mask is None else src_mask
        if tgt_mask is None:
            tgt_mask = self.create_padding_mask(tgt)
            if not self.config.causal:
                tgt_mask = tgt_mask & self.create_look_ahead_mask(tgt.shape[1]).to(tgt.device)
        memory = self.encoder(src, src_mask)
        return self.output_layer(self.decoder(tgt, memory, tgt_mask, src_mask))

    def encode(self, src: Tensor) -> tuple[Tensor, Tensor]:
        """The memory (B, S, D) that the decoder attends to, and its mask (B, S), False on padding."""
        return self.encoder(src, self._real(src)), self._real(src)

    def init_cache(self, batch: int, max_len: int | None = None) -> tuple[nn.Cache, ...]:
        """An empty cache for `decode`, for `max_len` positions (`max_seq_len` if not given, and at most)."""
        max_len = self.config.max_seq_len if max_len is None else max_len
        nn.check_length(max_len, self.config.max_seq_len)
        return tuple(layer.attention.init_cache(batch, max_len) for layer in self.decoder.layers)

    def decode(
        self, tgt: Tensor, cache: tuple[nn.Cache, ...], memory: Tensor, memory_mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[nn.Cache, ...]]:
        """The logits of the next target tokens, none of them padding, and the cache with them appended."""
        x, cache = self.decoder(tgt, memory, None, memory_mask, cache)
        return self.output_layer(x), cache

    def _real(self, ids: Tensor) -> Tensor:
        return ids != self.config.pad_token_id
