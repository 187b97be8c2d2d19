"""Causal language model with a choice of positions and attention patterns.

Vaswani et al. 2017, arXiv:1706.03762; Radford et al. 2019. Embeddings start at N(0, 0.02^2); before
sinusoidal positions they are multiplied by sqrt(d_model), as in Vaswani et al., section 3.4.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import DataError, UsageError


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the model, its loss and its training.

    `use_rope` is encoding_type="rope" and `use_relative_pos` attention_type="relative"; both types are
    derived where they are None ("sinusoidal" and "standard" without the switches). `use_learnable` is
    PositionalEncoding's. `use_xformers` is a synonym of `use_flash_attention`. The loss is
    alpha (1 - p)^gamma times the smoothed cross-entropy: alpha 1 and gamma 0 leave it plain. Learning rate,
    weight decay, warm-up, gradient norm and mixed precision are read by the trainer.
    """

    vocab_size: int = 50257
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_ff: int = 3072
    max_seq_len: int = 512
    dropout: float = 0.1
    activation: str = "gelu"
    use_relative_pos: bool = False
    use_rope: bool = False
    use_flash_attention: bool = False
    use_xformers: bool = False
    gradient_checkpointing: bool = False
    mixed_precision: bool = False
    weight_decay: float = 0.01
    learning_rate: float = 3e-4
    warmup_steps: int = 1000
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    focal_loss_alpha: float = 1.0
    focal_loss_gamma: float = 0.0
    attention_type: str | None = None
    encoding_type: str | None = None
    max_relative_position: int = 32
    use_learnable: bool = False
    tie_word_embeddings: bool = True
    norm_first: bool = False

    def __post_init__(self) -> None:
        if self.use_rope and self.encoding_type not in (None, "rope"):
            raise UsageError(f"use_rope contradicts encoding_type={self.encoding_type!r}: set one")
        if self.use_relative_pos and self.attention_type not in (None, "relative"):
            raise UsageError(f"use_relative_pos contradicts attention_type={self.attention_type!r}: set one")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if self.focal_loss_alpha <= 0 or self.focal_loss_gamma < 0:
            raise UsageError("focal_loss_alpha must be positive and focal_loss_gamma not negative")

    @property
    def attention(self) -> str:
        """The attention type, the switches resolved."""
        return self.attention_type or ("relative" if self.use_relative_pos else "standard")

    @property
    def encoding(self) -> str:
        """The encoding type, the switches resolved."""
        return self.encoding_type or ("rope" if self.use_rope else "sinusoidal")


class AdvancedTransformerModel(nn.Module):
    """ids (B, T) -> {"logits" (B, T, V)}, with labels (B, T) also "loss".

    `attention_mask` (B, T) is True where a token is real. Logits at t predict the label at t + 1; labels of
    -100 do not count, and if none counts the loss is 0. `decode` is the same function a few tokens at a
    time.

    Raises:
        UsageError: contradictory settings.
        DataError: in the call, T beyond `max_seq_len`, ids outside the vocabulary, a mask or labels of
            another shape than the ids.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        rope = config.encoding == "rope"
        self.word_embedding = nn.Embedding(config.vocab_size, config.d_model, rngs=rngs)
        nn.initialized(self.word_embedding, "normal", rngs=rngs)
        # Rotary positions enter inside attention: only the dropout is left of the encoding.
        self.positional_encoding: Any = (
            nn.Dropout(config.dropout, rngs=rngs)
            if rope
            else nn.PositionalEncoding(
                config.d_model,
                config.max_seq_len,
                config.dropout,
                config.encoding,
                config.use_learnable,
                rngs=rngs,
            )
        )
        block = nn.TransformerBlockConfig(
            norm_first=config.norm_first,
            attention_type=config.attention,
            max_relative_position=config.max_relative_position,
            use_flash_attention=config.use_flash_attention or config.use_xformers,
            position="rope" if rope else "none",
            causal=True,
            max_len=config.max_seq_len,
            use_learnable=rope and config.use_learnable,
        )
        self.layers: Any = nn.ModuleList(
            [
                nn.TransformerBlock(
                    config.d_model,
                    config.n_heads,
                    config.d_ff,
                    config.dropout,
                    config.activation,
                    config=block,
                    rngs=rngs,
                )
                for _ in range(config.n_layers)
            ]
        )
        self.norm = nn.LayerNorm(config.d_model, rngs=rngs) if config.norm_first else nnx.data(None)
        self.lm_head = nnx.data(None)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False, rngs=rngs)
            nn.initialized(self.lm_head, "normal", rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"],
        attention_mask: Array | None = None,
        labels: Int[Array, "_ _"] | None = None,
    ) -> dict[str, Array]:
        self._check(input_ids, attention_mask, labels)
        x = self._embed(input_ids)
        for layer in self.layers:
            call = functools.partial(remat, layer) if self.config.gradient_checkpointing else layer
            x = call(x, attention_mask)
        outputs = {"logits": self._head(x)}
        return outputs if labels is None else {**outputs, "loss": self._loss(outputs["logits"], labels)}

    def init_cache(self, batch: int, max_len: int | None = None) -> tuple[nn.Cache, ...]:
        """An empty cache for `decode`, for `max_len` positions (`max_seq_len` if not given).

        Raises:
            DataError: `max_len` exceeds the model's.
        """
        max_len = self.config.max_seq_len if max_len is None else max_len
        nn.check_length(max_len, self.config.max_seq_len)
        return tuple(layer.attention.init_cache(batch, max_len) for layer in self.layers)

    def decode(
        self, input_ids: Int[Array, "b t"], cache: tuple[nn.Cache, ...]
    ) -> tuple[Float[Array, "b t v"], tuple[nn.Cache, ...]]:
        """The logits of the next T tokens after those in the cache, and the cache with them appended.

        The number of tokens is not checked against the cache when its index is traced: see `generate`.
        """
        x, new_cache = self._embed(input_ids, cache[0].length), []
        for layer, old in zip(self.layers, cache, strict=True):
            x, new = layer(x, cache=old)
            new_cache.append(new)
        return self._head(x), tuple(new_cache)

    def _embed(self, ids: Int[Array, "b t"], offset: int | Int[Array, ""] = 0) -> Float[Array, "b t d"]:
        x = self.word_embedding(ids)
        if self.config.encoding == "rope":
            return self.positional_encoding(x)
        if self.config.encoding == "sinusoidal":
            x = x * math.sqrt(self.config.d_model)
        return self.positional_encoding(x, offset)

    def _head(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        x = x if self.norm is None else self.norm(x)
        return x @ self.word_embedding.weight[...].T if self.lm_head is None else self.lm_head(x)

    def _loss(self, logits: Float[Array, "b t v"], labels: Int[Array, "b t"]) -> Float[Array, ""]:
        config, target = self.config, labels[:, 1:]
        upcast = logits[:, :-1].astype(nn.accumulation_dtype(logits.dtype))
        log_p = jax.nn.log_softmax(upcast)
        valid = target != -100
        log_pt = jnp.take_along_axis(log_p, jnp.where(valid, target, 0)[..., None], -1)[..., 0]
        loss = -log_pt
        if config.label_smoothing > 0:
            loss = (1 - config.label_smoothing) * loss - config.label_smoothing * log_p.mean(-1)
        if config.focal_loss_gamma > 0:
            loss = (-jnp.expm1(log_pt)) ** config.focal_loss_gamma * loss
        loss = config.focal_loss_alpha * jnp.where(valid, loss, 0)
        return loss.sum() / jnp.maximum(valid.sum(), 1).astype(loss.dtype)

    def _check(self, ids: Array, mask: Array | None, labels: Array | None) -> None:
        nn.check_length(ids.shape[1], self.config.max_seq_len)
        for name, value in (("attention_mask", mask), ("labels", labels)):
            if value is not None and value.shape != ids.shape:
                raise DataError(f"{name} has shape {value.shape}, the input_ids {ids.shape}: they must agree")
        if labels is not None:
            nn.check_ids(jnp.where(labels == -100, 0, labels), self.config.vocab_size, "label")


def remat(layer: nn.TransformerBlock, x: Array, mask: Array | None) -> Array:
    """A layer whose activations are computed again in the backward pass (Chen et al. 2016)."""
    return nnx.remat(lambda layer, x, mask: layer(x, mask))(layer, x, mask)
