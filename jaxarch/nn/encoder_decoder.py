"""torch.nn's Transformer and its parts: layers, stacks of copies of a layer, and the whole.

Vaswani et al. 2017, arXiv:1706.03762; with norm_first Xiong et al. 2020, arXiv:2002.04745. Sequences are
(T, B, d_model), or (B, T, d_model) if batch_first, or (T, d_model). Masks are torch.nn's, see `MultiheadAttention`:
True where attention is blocked, or floats that are added; (T, T) or (B * nhead, T, T), those of padding (B, T).
A hint that a mask is causal needs the mask, and spares the fused kernel reading it; without a hint every mask is
read. torch's inference fast path sets the states of padded positions to zero; here they are as in training.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn.activation import Function, get_activation
from jaxarch.nn.containers import ModuleList
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.init import initialize_matrices
from jaxarch.nn.linear import Linear
from jaxarch.nn.module import Module
from jaxarch.nn.multihead import Mask, MultiheadAttention
from jaxarch.nn.norm import LayerNorm

Layer = TypeVar("Layer", bound=nnx.Module)


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
        *,
        rngs: nnx.Rngs,
    ):
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, rngs=rngs
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.linear2 = Linear(dim_feedforward, d_model, bias, rngs=rngs)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
        self.dropout1 = Dropout(dropout, rngs=rngs)
        self.dropout2 = Dropout(dropout, rngs=rngs)
        self.activation = get_activation(activation)

    def __call__(
        self,
        src: Float[Array, "*t d"],
        src_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        is_causal: bool = False,
    ) -> Float[Array, "*t d"]:
        masks = src_mask, src_key_padding_mask, is_causal
        if self.norm_first:
            x = src + self._self_attention(self.norm1(src), *masks)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(src + self._self_attention(src, *masks))
        return self.norm2(x + self._feed_forward(x))

    def _self_attention(
        self, x: Float[Array, "*t d"], mask: Mask, padding: Mask, is_causal: bool
    ) -> Float[Array, "*t d"]:
        return self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])

    def _feed_forward(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerEncoder(Module):
    """torch.nn.TransformerEncoder: `num_layers` copies of a layer, with its weights, and a norm at the end.

    `enable_nested_tensor` and `mask_check` are torch's switches of its inference fast path and change nothing. Each
    copy draws dropout masks of its own.
    """

    def __init__(
        self,
        encoder_layer: nnx.Module,
        num_layers: int,
        norm: nnx.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ):
        self.layers: Any = _copies(encoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm: Any = nnx.data(norm)
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def __call__(
        self,
        src: Float[Array, "*t d"],
        mask: Mask = None,
        src_key_padding_mask: Mask = None,
        is_causal: bool | None = None,
    ) -> Float[Array, "*t d"]:
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
        *,
        rngs: nnx.Rngs,
    ):
        self.norm_first = norm_first
        self.self_attn: Any = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, rngs=rngs
        )
        self.multihead_attn: Any = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, rngs=rngs
        )
        self.linear1 = Linear(d_model, dim_feedforward, bias, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.linear2 = Linear(dim_feedforward, d_model, bias, rngs=rngs)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
        self.norm3 = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
        self.dropout1 = Dropout(dropout, rngs=rngs)
        self.dropout2 = Dropout(dropout, rngs=rngs)
        self.dropout3 = Dropout(dropout, rngs=rngs)
        self.activation = get_activation(activation)

    def __call__(
        self,
        tgt: Float[Array, "*t d"],
        memory: Float[Array, "*s d"],
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Float[Array, "*t d"]:
        own = tgt_mask, tgt_key_padding_mask, tgt_is_causal
        other = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        if self.norm_first:
            x = tgt + self._self_attention(self.norm1(tgt), *own)
            x = x + self._cross_attention(self.norm2(x), *other)
            return x + self._feed_forward(self.norm3(x))
        x = self.norm1(tgt + self._self_attention(tgt, *own))
        x = self.norm2(x + self._cross_attention(x, *other))
        return self.norm3(x + self._feed_forward(x))

    def _self_attention(
        self, x: Float[Array, "*t d"], mask: Mask, padding: Mask, is_causal: bool
    ) -> Float[Array, "*t d"]:
        return self.dropout1(self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)[0])

    def _cross_attention(
        self,
        x: Float[Array, "*t d"],
        memory: Float[Array, "*s d"],
        mask: Mask,
        padding: Mask,
        is_causal: bool,
    ) -> Float[Array, "*t d"]:
        y, _ = self.multihead_attn(x, memory, memory, padding, False, mask, is_causal=is_causal)
        return self.dropout2(y)

    def _feed_forward(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        return self.dropout3(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class TransformerDecoder(Module):
    """torch.nn.TransformerDecoder: `num_layers` copies of a layer, with its weights, and a norm at the end.

    Each copy draws dropout masks of its own.
    """

    def __init__(self, decoder_layer: nnx.Module, num_layers: int, norm: nnx.Module | None = None):
        self.layers: Any = _copies(decoder_layer, num_layers)
        self.num_layers = num_layers
        self.norm: Any = nnx.data(norm)

    def __call__(
        self,
        tgt: Float[Array, "*t d"],
        memory: Float[Array, "*s d"],
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Float[Array, "*t d"]:
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

    Raises:
        DataError: in the call, src and tgt of different batches, or of another width than d_model.
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
        *,
        rngs: nnx.Rngs,
    ):
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
            encoder_norm = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
            encoder_layer = TransformerEncoderLayer(*sizes, rngs=rngs)
            custom_encoder = TransformerEncoder(encoder_layer, num_encoder_layers, encoder_norm)
        if custom_decoder is None:
            decoder_norm = LayerNorm(d_model, layer_norm_eps, bias=bias, rngs=rngs)
            decoder_layer = TransformerDecoderLayer(*sizes, rngs=rngs)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, decoder_norm)
        self.encoder = custom_encoder
        self.decoder = custom_decoder
        initialize_matrices(self, "xavier", rngs=rngs)
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def __call__(
        self,
        src: Float[Array, "*s d"],
        tgt: Float[Array, "*t d"],
        src_mask: Mask = None,
        tgt_mask: Mask = None,
        memory_mask: Mask = None,
        src_key_padding_mask: Mask = None,
        tgt_key_padding_mask: Mask = None,
        memory_key_padding_mask: Mask = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Float[Array, "*t d"]:
        axis = 0 if self.batch_first else 1
        if src.ndim == 3 and src.shape[axis] != tgt.shape[axis]:
            raise DataError(f"src {src.shape} and tgt {tgt.shape} need the same batch, on axis {axis}")
        if not src.shape[-1] == tgt.shape[-1] == self.d_model:
            raise DataError(f"src {src.shape} and tgt {tgt.shape} need the width d_model {self.d_model}")
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
    def generate_square_subsequent_mask(sz: int, dtype: DTypeLike = float) -> Float[Array, "{sz} {sz}"]:
        """The causal mask that is added: 0 at and before a position, -inf after it."""
        return jnp.where(jnp.tri(sz, dtype=bool), 0.0, -jnp.inf).astype(dtype)


def _copies(layer: Layer, count: int) -> ModuleList:
    """Copies with the layer's weights; the dropouts of each draw from keys of its own."""
    copies = [nnx.clone(layer) for _ in range(count)]
    for i, copy in enumerate(copies):
        for _, part in nnx.iter_graph(copy):
            if isinstance(part, nnx.RngStream):
                part.key.set_raw_value(jax.random.fold_in(part.key[...], i))
    return ModuleList(copies)
