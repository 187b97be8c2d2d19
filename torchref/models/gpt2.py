"""GPT-2: a causal transformer with pre-norm blocks, with Hugging Face's names.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Names and config fields are those
of `GPT2LMHeadModel` in `transformers`. A row whose keys are all masked attends evenly to earlier positions
(in `transformers` to all, later ones included).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from torchref import nn


@dataclass(frozen=True)
class GPT2Config:
    """The settings of Hugging Face's config that decide what is computed.

    `n_inner` None is 4 `n_embd`. `output_hidden_states` and `output_attentions` are the defaults of the
    call's arguments.
    """

    model_type: ClassVar[str] = "gpt2"
    base_model_prefix: ClassVar[str] = "transformer"
    # Other names of settings, and settings of which one value is implemented.
    attribute_map: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    only: ClassVar[Mapping[str, object]] = {"add_cross_attention": False}

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    output_hidden_states: bool = False
    output_attentions: bool = False

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide n_embd {self.n_embd}")


class GPT2Attention(nn.Module):
    """Causal attention; queries, keys and values come from one projection, `c_attn`."""

    def __init__(self, config: GPT2Config, layer_idx: int):
        super().__init__()
        width = config.n_embd
        self.heads, self.head_dim = config.n_head, width // config.n_head
        # On top of the usual 1 / sqrt(head_dim).
        self.factor = 1.0 if config.scale_attn_weights else math.sqrt(self.head_dim)
        if config.scale_attn_by_inverse_layer_idx:
            self.factor = self.factor / (layer_idx + 1)
        self.c_attn = nn.Conv1D(3 * width, width)
        self.c_proj = nn.Conv1D(width, width)
        self.attn_dropout = nn.Dropout(config.attn_pdrop)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: nn.Cache | None = None
    ) -> tuple[Tensor, Tensor, nn.Cache | None]:
        q, k, v = self.c_attn(x).chunk(3, -1)
        y, weights, cache = nn.attend(q, k, v, self.heads, mask, self.attn_dropout, True, self.factor, cache)
        return self.resid_dropout(self.c_proj(y)), weights, cache


class GPT2MLP(nn.Module):
    """Two layers with an activation between them, and dropout after."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = nn.Conv1D(inner, config.n_embd)
        self.c_proj = nn.Conv1D(config.n_embd, inner)
        self.act = nn.hub_activation(config.activation_function)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class GPT2Block(nn.Module):
    """Attention and MLP, each after a norm and beside a residual path."""

    def __init__(self, config: GPT2Config, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: nn.Cache | None = None
    ) -> tuple[Tensor, Tensor, nn.Cache | None]:
        y, weights, cache = self.attn(self.ln_1(x), mask, cache)
        x = x + y
        return x + self.mlp(self.ln_2(x)), weights, cache


class GPT2Model(nn.Module):
    """ids, or embeddings, (B, T) -> the states after the last norm; every state; every attention's weights."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h: Any = nn.ModuleList([GPT2Block(config, i) for i in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(
        self,
        input_ids: Tensor | None,
        mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        x = self.embed(input_ids, token_type_ids, position_ids, inputs_embeds)
        states, attentions = [x], []
        for block in self.h:
            x, weights, _ = block(x, mask)
            states.append(x)
            attentions.append(weights)
        # Hugging Face returns the last state after the norm.
        states[-1] = self.ln_f(x)
        return states[-1], states, attentions

    def embed(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        offset: int = 0,
    ) -> Tensor:
        """Tokens and positions, and token types, which share the tokens' table."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x: Any = self.wte(input_ids) if input_ids is not None else inputs_embeds
        if position_ids is None:
            nn.check_length(x.shape[1], self.config.n_positions, offset)
            position_ids = (torch.arange(x.shape[1], device=x.device) + offset)[None]
        x = x + self.wpe(position_ids)
        return self.drop(x if token_type_ids is None else x + self.wte(token_type_ids))


class GPT2LMHeadModel(nn.Module):
    """ids (B, T) -> {"logits" (B, T, V)}; with labels (B, T) also "loss"; "hidden_states", "attentions" on request.

    `attention_mask` (B, T) is 1 or True where a token is real. Logits at t predict the label at t + 1, and
    labels of -100 do not count. `position_ids` (B, T) or (1, T) count from 0 if not given, padding or not.
    `inputs_embeds` (B, T, D) stand for the embeddings of tokens. `decode` is the same a few tokens at a time.

    Heads that do not divide the width and unknown activations are ValueErrors, and in the call T beyond
    `n_positions`, a mask or labels of another shape; ids out of range are an IndexError.
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.transformer = GPT2Model(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        nn.draw_normal(self, config.initializer_range)
        # Radford et al.: residual layers start smaller, by the number of residual paths.
        for block in self.transformer.h:
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                nn.draw_normal(layer, config.initializer_range / math.sqrt(2 * config.n_layer))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> dict[str, Any]:
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is not None:
            nn.check_same_shape(
                given.shape[:2], attention_mask=attention_mask, token_type_ids=token_type_ids, labels=labels
            )
        x, states, attentions = self.transformer(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        outputs: dict[str, Any] = {"logits": self._head(x)}
        if labels is not None:
            outputs["loss"] = nn.token_loss(outputs["logits"][:, :-1], labels[:, 1:])
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            outputs["hidden_states"] = tuple(states)
        if self.config.output_attentions if output_attentions is None else output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs

    def init_cache(self, batch: int, max_len: int | None = None) -> tuple[nn.Cache, ...]:
        """An empty cache for `decode`, for `max_len` positions (`n_positions` if not given, and at most)."""
        config, weight = self.config, self.transformer.wte.weight
        max_len = config.n_positions if max_len is None else max_len
        nn.check_length(max_len, config.n_positions)
        zeros = weight.new_zeros(batch, config.n_head, max_len, config.n_embd // config.n_head)
        return tuple(nn.Cache(zeros, zeros.clone(), 0) for _ in self.transformer.h)

    def decode(self, input_ids: Tensor, cache: tuple[nn.Cache, ...]) -> tuple[Tensor, tuple[nn.Cache, ...]]:
        """The logits of the next T tokens after those in the cache, and the cache with them appended."""
        x, new_cache = self.transformer.embed(input_ids, offset=cache[0].length), []
        for block, old in zip(self.transformer.h, cache, strict=True):
            x, _, new = block(x, cache=old)
            new_cache.append(new)
        return self._head(self.transformer.ln_f(x)), tuple(new_cache)

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.transformer.wte.weight) if self.lm_head is None else self.lm_head(x)
