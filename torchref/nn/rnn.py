"""torch.nn's RNN, LSTM and GRU, with lengths in the call and dropout as a module.

They run layer by layer while dropout acts between layers, so that `drop`'s mask can be injected, and
through torch's fused path otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

State = Tensor | tuple[Tensor, ...]


class _Recurrent:
    """The methods that RNN, LSTM and GRU share, mixed into torch's classes, whose forward they call.

    input and hx as torch's, lengths (B,) in [1, T] or None
    -> outputs as torch's, zero at and past the length; final states.
    """

    torch_class: Any
    drop: Dropout
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    training: bool

    def _run(self, x: Tensor, lengths: Tensor | None, states: State | None) -> tuple[Tensor, Any]:
        if self.num_layers == 1 or not self.training or self.dropout == 0:
            return self._padded(functools.partial(self.torch_class.forward, self), x, lengths, states)
        dirs, final = 2 if self.bidirectional else 1, []
        for layer in range(self.num_layers):
            indices = slice(layer * dirs, (layer + 1) * dirs)
            x, layer_final = self._padded(self._layer(layer), x, lengths, _rows(states, indices))
            final.append(layer_final)
            if layer < self.num_layers - 1:
                x = self.drop(x)
        if isinstance(layer_final, tuple):
            return x, tuple(map(torch.cat, zip(*final, strict=True)))
        return x, torch.cat(final)

    def _padded(
        self, run: Callable[..., Any], x: Tensor, lengths: Tensor | None, state: State | None
    ) -> tuple[Tensor, Any]:
        if lengths is None:
            return run(x, state)
        steps = x.shape[1 if self.batch_first else 0]
        packed = pack_padded_sequence(x, lengths.cpu(), self.batch_first, enforce_sorted=False)
        packed, final = run(packed, state)
        return pad_packed_sequence(packed, self.batch_first, total_length=steps)[0], final

    def _layer(self, layer: int) -> Callable[[Any, State | None], Any]:
        """One layer as a function of this module's parameters."""
        hidden = self.proj_size or self.hidden_size
        width = self.input_size if layer == 0 else hidden * (2 if self.bidirectional else 1)
        extra: dict[str, Any] = {"nonlinearity": self.nonlinearity} if isinstance(self, RNN) else {}
        if isinstance(self, LSTM):
            extra = {"proj_size": self.proj_size}
        single = self.torch_class(
            width,
            self.hidden_size,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            device="meta",
            **extra,
        )
        names = [name for name, _ in single.named_parameters()]
        weights = {name: getattr(self, name.replace("_l0", f"_l{layer}")) for name in names}
        return lambda x, state: torch.func.functional_call(single, weights, (x, state))


def _rows(states: State | None, indices: slice) -> State | None:
    """The given rows of every state."""
    if states is None:
        return None
    return tuple(s[indices] for s in states) if isinstance(states, tuple) else states[indices]


class RNN(_Recurrent, torch.nn.RNN):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman 1990)."""

    torch_class = torch.nn.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.drop = Dropout(dropout)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._run(input, lengths, hx)


class LSTM(_Recurrent, torch.nn.LSTM):
    """Gates in the order i, f, g, o (Hochreiter and Schmidhuber 1997); the state is (h, c)."""

    torch_class = torch.nn.LSTM

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        self.drop = Dropout(dropout)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self._run(input, lengths, hx)


class GRU(_Recurrent, torch.nn.GRU):
    """Gates in the order r, z, n; n = tanh(W_in x + b_in + r * (W_hn h + b_hn)) (Cho et al. 2014)."""

    torch_class = torch.nn.GRU

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
        )
        self.drop = Dropout(dropout)

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._run(input, lengths, hx)
