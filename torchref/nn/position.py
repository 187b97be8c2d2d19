"""Positions: sinusoidal, learned and rotary."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import Dropout, Module, Parameter

ENCODINGS = ("sinusoidal", "learnable", "rope")
ROPE_LAYOUTS = ("interleaved", "rotate_half")


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
    ):
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary embedding needs an even head_dim, not {head_dim}")
        if layout not in ROPE_LAYOUTS:
            raise ValueError(f"unknown rotary layout {layout!r}: known: {', '.join(ROPE_LAYOUTS)}")
        self.head_dim, self.max_len, self.base, self.layout = head_dim, max_len, base, layout
        frequencies = self._frequencies(torch.get_default_dtype())
        self.inv_freq = Parameter(frequencies) if learnable else None

    def forward(
        self, q: Tensor, k: Tensor, offset: int = 0, k_offset: int | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.rotate(q, offset), self.rotate(k, offset if k_offset is None else k_offset)

    def rotate(self, x: Tensor, offset: int = 0) -> Tensor:
        """x with the rotations of the positions offset, offset + 1, ...; past `max_len` is a ValueError."""
        length = x.shape[-2]
        check_length(length, self.max_len, offset)
        dtype = torch.promote_types(x.dtype, torch.float32)
        inv_freq = self._frequencies(dtype) if self.inv_freq is None else self.inv_freq.to(dtype)
        inv_freq = inv_freq.to(x.device)
        angle = (torch.arange(length, device=x.device) + offset).to(dtype)[:, None] * inv_freq
        cos, sin = torch.cos(angle), torch.sin(angle)
        upcast = x.to(dtype)
        if self.layout == "interleaved":
            a, b = upcast[..., 0::2], upcast[..., 1::2]
            y = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)
        else:
            a, b = upcast.chunk(2, -1)
            y = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        return y.to(x.dtype)

    def _frequencies(self, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(self.base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)).to(dtype)


class PositionalEncoding(Module):
    """Adds positions, or rotates by them, then drops out.

    (T, D) or (B, T, D) -> the same. "sinusoidal": sin on even, cos on odd features, base 10000 (Vaswani et
    al. 2017); `use_learnable` adds a learned `offset` per position. "learnable": `pe` itself is learned.
    "rope": features are rotated in interleaved pairs; `use_learnable` learns the inverse frequencies. `pe`
    is (max_len, 1, d_model), or with `batch_first` (1, max_len, d_model); the input's shape is the same for
    both. With `sequence_first` the input is (T, B, D). `offset` in the call is the position of the
    first row. A T longer than `max_len` is a ValueError.
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
    ):
        super().__init__()
        if encoding_type not in ENCODINGS:
            raise ValueError(f"unknown encoding type {encoding_type!r}: known: {', '.join(ENCODINGS)}")
        self.d_model, self.max_len, self.encoding_type = d_model, max_len, encoding_type
        self.sequence_first = sequence_first
        self.dropout = Dropout(dropout)
        self.offset = self.rope = None
        shape = (1, max_len, d_model) if batch_first else (max_len, 1, d_model)
        if encoding_type == "sinusoidal":
            table = torch.from_numpy(sinusoids(max_len, d_model)).to(torch.get_default_dtype())
            self.register_buffer("pe", table.reshape(shape))
            if use_learnable:
                self.offset = Parameter(0.02 * torch.randn(shape))
        elif encoding_type == "learnable":
            self.pe = Parameter(0.02 * torch.randn(shape))
        else:
            self.rope = RotaryEmbedding(d_model, max_len, learnable=use_learnable)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        if self.sequence_first and x.ndim == 3:
            return self._added(x.transpose(0, 1), offset).transpose(0, 1)
        return self._added(x, offset)

    def _added(self, x: Tensor, offset: int) -> Tensor:
        check_length(x.shape[-2], self.max_len, offset)
        if self.rope is not None:
            return self.dropout(self.rope.rotate(x, offset))
        x = x + self._rows(self.pe, x, offset)
        if self.offset is not None:
            x = x + self._rows(self.offset, x, offset)
        return self.dropout(x)

    def _rows(self, table: Tensor, x: Tensor, offset: int) -> Tensor:
        rows = table.reshape(self.max_len, self.d_model)
        return rows[offset : offset + x.shape[-2]].to(x.dtype)


def sinusoids(length: int, d_model: int) -> np.ndarray:
    """The table of Vaswani et al. 2017, section 3.5, (length, d_model) in float64; d_model may be odd."""
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, d_model, 2) / d_model)
    table = np.zeros((length, d_model))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : d_model // 2])
    return table


def check_length(length: int, max_len: int, offset: int = 0) -> None:
    """Refuse a sequence that runs past `max_len` with a ValueError that names both lengths."""
    total = length + offset
    if total > max_len:
        raise ValueError(f"a sequence of length {total} exceeds max_len {max_len}: shorten it, or raise that")


AdvancedPositionalEncoding = PositionalEncoding
