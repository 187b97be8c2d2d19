"""torch.nn's Transformer and its parts: layers, stacks of copies of a layer, and the whole.

Vaswani et al. 2017, arXiv:1706.03762; with norm_first Xiong et al. 2020, arXiv:2002.04745. Sequences are
(T, B, d_model), or (B, T, d_model) if batch_first, or (T, d_model). Masks are torch.nn's, see `MultiheadAttention`:
True where attention is blocked, or floats that are added; (T, T) or (B * nhead, T, T), those of padding (B, T).
A hint that a mask is causal needs the mask, and spares the fused kernel reading it; without a hint every mask is
read. torch's inference fast path sets the states of padded positions to zero; here they are as in training.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm, Linear, Module, ModuleList

from torchref.nn.activation import Function, get_activation
from torchref.nn.init import initialize_matrices
from torchref.nn.multihead import Mask, MultiheadAttention


class TransformerEncoderLayer(Module):
    """torch.nn.TransformerEncoderLayer with its names. src (T, B, d_model) -> the same; see the module's docstring.

    `activation` is a name or a function.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Function = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.linear1 = Linear(d_model, dim_feedforward, bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.activation = get_activation(activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        is_causal: bool = False,
    ) -> Tensor:
        masks = src_mask, src_key_padding_mask, is_causal
        if self.norm_first:
            x = src + self._self_attention(self.norm1(src), *masks)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(src + self._self_attention(src, *masks))
        return self.norm2(x + self._feed_forward(x))

    def _self_attention(self, x: Tensor, mask: Mask, padding: Mask, is_causal: bool) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoder(Module):
    """torch.nn.TransformerEncoder: `num_layers` copies of a layer, with its weights, and a norm at the end.

    `enable_nested_tensor` and `mask_check` are torch's switches of its inference fast path and change nothing.
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ):
        super().__init__()
        self.layers: Any = _copies(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm: Any = norm
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Tensor,
        mask: Mask = None,
        src_key_padding_mask: Mask = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        for layer in self.layers:
            src = layer(
                src,
                src_mask=mask,
                is_causal=bool(is_causal),
                src_key_padding_mask=src_key_padding_mask,
            )
        return src if self.norm is None else self.norm(src)


class TransformerDecoderLayer(Module):
    """torch.nn.TransformerDecoderLayer with its names. tgt (T, B, d_model), memory (S, B, d_model) -> as tgt.

    memory_mask is (T, S) or (B * nhead, T, S), memory_key_padding_mask (B, S); see the module's docstring.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Function = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.multihead_attn: Any = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.linear1 = Linear(d_model, dim_feedforward, bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        self.dropout3 = Dropout(dropout)
        self.activation = get_activation(activation)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own = tgt_mask, tgt_key_padding_mask, tgt_is_causal
        other = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        if self.norm_first:
            x = tgt + self._self_attention(self.norm1(tgt), *own)
            x = x + self._cross_attention(self.norm2(x), *other)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(tgt + self._self_attention(tgt, *own))
        x = self.norm2(x + self._cross_attention(x, *other))
        return self.norm3(x + self._feed_forward(x))

    def _self_attention(self, x: Tensor, mask: Mask, padding: Mask, is_causal: bool) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])

    def _cross_attention(
        self, x: Tensor, memory: Tensor, mask: Mask, padding: Mask, is_causal: bool
    ) -> Tensor:
        y, _ = self.multihead_attn(x, memory, memory, padding, False, mask, is_causal=is_causal)
        return self.dropout2(y)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout3(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerDecoder(Module):
    """torch.nn.TransformerDecoder: `num_layers` copies of a layer, with its weights, and a norm at the end."""

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None):
        super().__init__()
        self.layers: Any = _copies(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm: Any = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=bool(tgt_is_causal),
                memory_is_causal=memory_is_causal,
            )
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """torch.nn.Transformer: src (S, B, d_model), tgt (T, B, d_model) -> as tgt; see the module's docstring.

    Every matrix, those of a custom encoder and decoder too, is drawn by Xavier's initialiser.

    src and tgt of different batches, or of another width than d_model, are ValueErrors.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Function = "relu",
        custom_encoder: Any = None,
        custom_decoder: Any = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        sizes = (
            d_model,
            nhead,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            batch_first,
            norm_first,
            bias,
        )
        if custom_encoder is None:
            encoder_norm = LayerNorm(d_model, layer_norm_eps, bias=bias)
            encoder_layer = TransformerEncoderLayer(*sizes)
            custom_encoder = TransformerEncoder(encoder_layer, num_encoder_layers, encoder_norm)
        if custom_decoder is None:
            decoder_norm = LayerNorm(d_model, layer_norm_eps, bias=bias)
            decoder_layer = TransformerDecoderLayer(*sizes)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, decoder_norm)
        self.encoder = custom_encoder
        self.decoder = custom_decoder
        initialize_matrices(self, "xavier")
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Mask = None,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        axis = 0 if self.batch_first else 1
        if src.ndim == 3 and src.shape[axis] != tgt.shape[axis]:
            raise ValueError(
                f"src {tuple(src.shape)} and tgt {tuple(tgt.shape)} need the same batch, on axis {axis}"
            )
        if not src.shape[-1] == tgt.shape[-1] == self.d_model:
            raise ValueError(
                f"src {tuple(src.shape)} and tgt {tuple(tgt.shape)} need the width d_model {self.d_model}"
            )
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(sz: int, dtype: torch.dtype | None = None) -> Tensor:
        """The causal mask that is added: 0 at and before a position, -inf after it."""
        return torch.full((sz, sz), -math.inf, dtype=dtype).triu(1)


def _copies(layer: Module, count: int) -> ModuleList:
    """Copies with the layer's weights."""
    return ModuleList(copy.deepcopy(layer) for _ in range(count))
