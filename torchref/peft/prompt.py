"""P-tuning: trainable vectors before a sequence. Liu et al. 2021, arXiv:2103.10385."""

import fnmatch
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, Embedding, Linear, Module, Sequential

from torchref.nn import LSTM, Activation, normal_parameter
from torchref.peft.lora import lora_layers

ENCODERS = ("embedding", "mlp", "lstm")


class PTuningLayer(Module):
    """(B, T, D) -> (B, prompt_length + T, D): the encoded prompt, then the sequence.

    `encoder` computes the prompt from its vectors: "embedding" is the identity, "mlp" two layers, "lstm" a
    bidirectional LSTM and two layers, as in the paper. An unknown one is a ValueError.
    """

    def __init__(
        self, d_model: int, prompt_length: int = 10, dropout: float = 0.1, encoder: str = "embedding"
    ):
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"unknown prompt encoder {encoder!r}: known: {', '.join(ENCODERS)}")
        self.prompt_length = prompt_length
        self.prompt_embeddings = normal_parameter((prompt_length, d_model), 0.02)
        self.lstm: Any = None
        self.mlp: Any = None
        if encoder == "lstm":
            self.lstm = LSTM(d_model, d_model, bidirectional=True, batch_first=True)
        if encoder != "embedding":
            width = 2 * d_model if encoder == "lstm" else d_model
            self.mlp = Sequential(Linear(width, d_model), Activation("relu"), Linear(d_model, d_model))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        prompt = self.dropout(self.encoded().expand(x.shape[0], -1, -1))
        return torch.cat((prompt, x), 1)

    def encoded(self) -> Tensor:
        """The vectors (P, D) of the prompt."""
        prompt = self.prompt_embeddings[None]
        prompt = prompt if self.lstm is None else self.lstm(prompt)[0]
        return (prompt if self.mlp is None else self.mlp(prompt))[0]

    def extend_mask(self, mask: Tensor) -> Tensor:
        """A mask (B, T) with the prompt, which is always attended to, before it."""
        return torch.cat((mask.new_ones(mask.shape[0], self.prompt_length), mask), 1)

    def extend_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, T) with -100, which does not count, for the prompt before them."""
        return torch.cat((labels.new_full((labels.shape[0], self.prompt_length), -100), labels), 1)


P_TuningLayer = PTuningLayer


class PromptEmbedding(Module):
    """An Embedding of V tokens, extended by a prompt of tokens V to V + prompt_length - 1.

    ids (...,) in [0, V + prompt_length) -> (..., D). The prompt's vectors are those of a PTuningLayer, and
    dropout is applied to them once per call. `weight` is the table of the V tokens, for heads that are tied
    to it.
    """

    def __init__(
        self, embedding: Embedding, prompt_length: int = 10, dropout: float = 0.1, encoder: str = "embedding"
    ):
        super().__init__()
        self.base_layer = embedding
        self.prompt = PTuningLayer(embedding.embedding_dim, prompt_length, dropout, encoder)
        self.prompt.to(embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        size = self.base_layer.num_embeddings
        is_token = ids < size
        x = self.base_layer(torch.where(is_token, ids, 0))
        prompt = self.prompt.dropout(self.prompt.encoded())
        return torch.where(is_token[..., None], x, prompt[torch.where(is_token, 0, ids - size)])

    @property
    def weight(self) -> Tensor:
        """The table of the tokens, without the prompt."""
        return self.base_layer.weight

    def extend_ids(self, ids: Tensor) -> Tensor:
        """Ids (B, T) with the prompt before them."""
        first, count = self.base_layer.num_embeddings, self.prompt.prompt_length
        prompt = torch.arange(first, first + count, dtype=ids.dtype, device=ids.device)
        return torch.cat((prompt.expand(ids.shape[0], -1), ids), 1)

    def extend_mask(self, mask: Tensor) -> Tensor:
        """As PTuningLayer's."""
        return self.prompt.extend_mask(mask)

    def extend_labels(self, labels: Tensor) -> Tensor:
        """As PTuningLayer's."""
        return self.prompt.extend_labels(labels)


def apply_prompt(
    model: Module, match: str, prompt_length: int = 10, dropout: float = 0.1, encoder: str = "embedding"
) -> PromptEmbedding:
    """Give the embedding whose path matches a prompt, and freeze everything else, in place.

    The model is then called with ids, masks and labels that the returned layer has extended. A pattern that
    matches no embedding, or several, a model with adapters and an unknown encoder are ValueErrors.
    """
    if lora_layers(model) or any(isinstance(m, PromptEmbedding) for m in model.modules()):
        raise ValueError("the model has adapters: merge and remove them, or create a new model")
    tables = {p: m for p, m in model.named_modules() if isinstance(m, Embedding)}
    hits = fnmatch.filter(tables, match)
    if not hits:
        raise ValueError(f"no embedding matches {match!r}: there are {', '.join(tables)}")
    if len(hits) > 1:
        raise ValueError(f"{match!r} matches several embeddings: {', '.join(hits)}; a prompt needs one")
    layer = PromptEmbedding(tables[hits[0]], prompt_length, dropout, encoder)
    model.requires_grad_(False)
    model.set_submodule(hits[0], layer)
    return layer


def remove_prompt(model: Module) -> None:
    """Restore the plain embedding; all weights are trainable."""
    for path, layer in [(p, m) for p, m in model.named_modules() if isinstance(m, PromptEmbedding)]:
        model.set_submodule(path, layer.base_layer)
    model.requires_grad_()
