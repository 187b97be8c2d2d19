"""Attention over words, then over sentences: Yang et al. 2016, doi:10.18653/v1/N16-1174."""

import torch
from torch import Tensor

from torchref import nn


class ContextAttention(nn.Module):
    """hidden (B, T, dim), mask (B, T) True where valid -> weighted sum (B, dim), weights (B, T).

    The score of a step is its match with a learned context vector. Without any valid step both are zero.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.context = nn.Linear(dim, 1, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.context(self.linear(hidden).tanh())[..., 0]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(~mask, 0)
        return torch.einsum("bt,btd->bd", weights, hidden), weights


class HierarchicalAttentionNetwork(nn.Module):
    """ids (B, S, W), S at most num_sentences -> logits (B, num_classes).

    Words equal to pad_token_id, and sentences of nothing else, are left out wherever they occur, as if the
    text were without them. A document of padding alone gives the classifier's bias. With `return_attention`
    also the weights of words (B, S, W) and of sentences (B, S), zero on padding. More sentences than
    num_sentences are a ValueError.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        num_classes: int,
        num_sentences: int,
        dropout: float = 0.1,
        pad_token_id: int = 0,
    ):
        super().__init__()
        self.num_sentences, self.pad_token_id = num_sentences, pad_token_id
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_token_id)
        self.word_gru = nn.GRU(embed_dim, hidden_size, batch_first=True, bidirectional=True)
        self.word_attention = ContextAttention(2 * hidden_size)
        self.sentence_gru = nn.GRU(2 * hidden_size, hidden_size, batch_first=True, bidirectional=True)
        self.sentence_attention = ContextAttention(2 * hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(
        self, ids: Tensor, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, sentences, words = ids.shape
        if sentences > self.num_sentences:
            raise ValueError(f"{sentences} sentences are more than num_sentences {self.num_sentences}")
        empty = (ids == self.pad_token_id).all(-1)
        # Padding moves to the end of each document and sentence, so that lengths describe it.
        sentence_order = empty.long().argsort(dim=-1, stable=True)
        ids = ids.take_along_dim(sentence_order[..., None], 1)
        word_order = (ids == self.pad_token_id).long().argsort(dim=-1, stable=True)
        valid = ids.take_along_dim(word_order, -1).reshape(-1, words)
        x, word_weights = self._read(
            self.word_gru,
            self.word_attention,
            self.dropout(self.embedding(valid)),
            valid != self.pad_token_id,
        )
        filled = (ids != self.pad_token_id).any(-1)
        x, sentence_weights = self._read(
            self.sentence_gru, self.sentence_attention, x.view(batch, sentences, -1), filled
        )
        logits = self.fc(self.dropout(x))
        if not return_attention:
            return logits
        word_weights = word_weights.view(ids.shape).take_along_dim(word_order.argsort(-1), -1)
        back = sentence_order.argsort(-1)
        word_weights = word_weights.take_along_dim(back[..., None], 1)
        return logits, (word_weights, sentence_weights.take_along_dim(back, 1))

    def _read(
        self, gru: nn.GRU, attention: ContextAttention, x: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The recurrent layers refuse a length of zero; the attention leaves out the one step read instead.
        hidden, _ = gru(x, lengths=mask.sum(-1).clamp(min=1))
        return attention(hidden, mask)
