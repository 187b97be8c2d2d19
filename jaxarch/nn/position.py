"""Positions: sinusoidal, learned and rotary."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.module import Buffer, Module

ENCODINGS = ("sinusoidal", "learnable", "rope")
ROPE_LAYOUTS = ("interleaved", "rotate_half")

Offset = int | Int[Array, ""]


class RotaryEmbedding(Module):
    """Rotates pairs of features by position * base^(-2i/head_dim) (Su et al. 2021, arXiv:2104.09864).

    q, k (B, H, T, Dh) -> the same. A pair is two neighbours with layout "interleaved" (the paper), features
    i and i + Dh/2 with "rotate_half" (GPT-NeoX and Llama checkpoints). Angles are float32 or float64. With
    `learnable` the inverse frequencies are the parameter `inv_freq`.
    """

    def __init__(
        self,
        head_dim: int,
        max_len: int = 5000,
        base: float = 10000.0,
        layout: str = "interleaved",
        learnable: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if head_dim % 2:
            raise UsageError(f"rotary embedding needs an even head_dim, not {head_dim}")
        if layout not in ROPE_LAYOUTS:
            raise unknown("rotary layout", layout, ROPE_LAYOUTS)
        self.head_dim, self.max_len, self.base, self.layout = head_dim, max_len, base, layout
        self.inv_freq = nnx.Param(self._frequencies(init.float_dtype())) if learnable else nnx.data(None)

    def __call__(
        self,
        q: Float[Array, "*heads tq d"],
        k: Float[Array, "*heads tk d"],
        offset: Offset = 0,
        k_offset: Offset | None = None,
    ) -> tuple[Float[Array, "*heads tq d"], Float[Array, "*heads tk d"]]:
        return self.rotate(q, offset), self.rotate(k, offset if k_offset is None else k_offset)

    def rotate(self, x: Float[Array, "*heads t d"], offset: Offset = 0) -> Float[Array, "*heads t d"]:
        """x with the rotations of the positions offset, offset + 1, ...

        Raises:
            DataError: a position is not below `max_len`.
        """
        length = x.shape[-2]
        check_length(length, self.max_len, offset)
        dtype = accumulation_dtype(x.dtype)
        inv_freq = self._frequencies(dtype) if self.inv_freq is None else self.inv_freq[...].astype(dtype)
        angle = (jnp.arange(length) + offset).astype(dtype)[:, None] * inv_freq
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        upcast = x.astype(dtype)
        if self.layout == "interleaved":
            a, b = upcast[..., 0::2], upcast[..., 1::2]
            y = jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)
        else:
            a, b = jnp.split(upcast, 2, -1)
            y = jnp.concatenate((a * cos - b * sin, a * sin + b * cos), -1)
        return y.astype(x.dtype)

    def _frequencies(self, dtype: DTypeLike) -> Float[Array, " h"]:
        return jnp.asarray(self.base ** (-np.arange(0, self.head_dim, 2) / self.head_dim), dtype)


class PositionalEncoding(Module):
    """Adds positions, or rotates by them, then drops out.

    (T, D) or (B, T, D) -> the same. "sinusoidal": sin on even, cos on odd features, base 10000 (Vaswani et
    al. 2017); `use_learnable` adds a learned `offset` per position. "learnable": `pe` itself is learned.
    "rope": features are rotated in interleaved pairs; `use_learnable` learns the inverse frequencies. `pe`
    is (max_len, 1, d_model), or with `batch_first` (1, max_len, d_model); the input's shape is the same for
    both. With `sequence_first` the input is (T, B, D). `offset` in the call is the position of the first row.

    Raises:
        UsageError: unknown encoding type, or rope with an odd d_model.
        DataError: in the call, T is longer than `max_len`.
    """

    def __init__(
        self,
        d_model: int,
        max_len: int = 5000,
        dropout: float = 0.1,
        encoding_type: str = "sinusoidal",
        use_learnable: bool = False,
        batch_first: bool = False,
        sequence_first: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        if encoding_type not in ENCODINGS:
            raise unknown("encoding type", encoding_type, ENCODINGS)
        self.d_model, self.max_len, self.encoding_type = d_model, max_len, encoding_type
        self.sequence_first = sequence_first
        self.dropout = Dropout(dropout, rngs=rngs)
        self.pe: Any = nnx.data(None)
        self.offset = self.rope = nnx.data(None)
        shape = (1, max_len, d_model) if batch_first else (max_len, 1, d_model)
        if encoding_type == "sinusoidal":
            self.pe = Buffer(jnp.asarray(sinusoids(max_len, d_model), init.float_dtype()).reshape(shape))
            if use_learnable:
                self.offset = nnx.Param(init.normal(0.02)(rngs.params(), shape))
        elif encoding_type == "learnable":
            self.pe = nnx.Param(init.normal(0.02)(rngs.params(), shape))
        else:
            self.rope = RotaryEmbedding(d_model, max_len, learnable=use_learnable, rngs=rngs)

    def __call__(self, x: Float[Array, "*b t d"], offset: Offset = 0) -> Float[Array, "*b t d"]:
        if self.sequence_first and x.ndim == 3:
            return self._added(x.swapaxes(0, 1), offset).swapaxes(0, 1)
        return self._added(x, offset)

    def _added(self, x: Float[Array, "*b t d"], offset: Offset) -> Float[Array, "*b t d"]:
        check_length(x.shape[-2], self.max_len, offset)
        if self.rope is not None:
            return self.dropout(self.rope.rotate(x, offset))
        x = x + self._rows(self.pe[...], x, offset)
        if self.offset is not None:
            x = x + self._rows(self.offset[...], x, offset)
        return self.dropout(x)

    def _rows(self, table: Float[Array, "_ _ d"], x: Array, offset: Offset) -> Float[Array, "t d"]:
        rows = table.reshape(self.max_len, self.d_model)
        return jnp.take(rows, jnp.arange(x.shape[-2]) + offset, axis=0).astype(x.dtype)


def sinusoids(length: int, d_model: int) -> np.ndarray:
    """The table of Vaswani et al. 2017, section 3.5, (length, d_model) in float64; d_model may be odd."""
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, d_model, 2) / d_model)
    table = np.zeros((length, d_model))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : d_model // 2])
    return table


def check_length(length: int, max_len: int, offset: Offset = 0) -> None:
    """Refuse a sequence that runs past `max_len`; a traced offset is not checked.

    Raises:
        DataError: naming both lengths.
    """
    total = length + offset if isinstance(offset, int) else length
    if total > max_len:
        raise DataError(f"a sequence of length {total} exceeds max_len {max_len}: shorten it, or raise that")


AdvancedPositionalEncoding = PositionalEncoding
