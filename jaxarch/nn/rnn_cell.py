"""RNNCell, LSTMCell and GRUCell: one step of a recurrent layer, with torch's names and gate order."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError, unknown
from jaxarch.nn import init
from jaxarch.nn.kernels.recurrent import GRU_CELL, LSTM_CELL, RELU, TANH, Cell
from jaxarch.nn.module import Module, optional
from jaxarch.nn.rnn import check_flag, check_positive
from jaxarch.nn.unbatched import unbatched


class RecurrentCell(Module):
    """The base class of RNNCell, LSTMCell and GRUCell; see torch.nn for the arguments.

    input (B, input_size) or (input_size,); hx (B, hidden_size), without B where the input has none, or None for zeros
    -> the new state, of the form of hx.

    Raises:
        UsageError: a size is not positive, or bias is not a bool.
        DataError: input and hx do not fit each other or the sizes.
    """

    def __init__(self, cell: Cell, input_size: int, hidden_size: int, bias: bool, rngs: nnx.Rngs):
        check_positive(input_size=input_size, hidden_size=hidden_size)
        check_flag(bias=bias)
        self.cell = cell
        self.input_size, self.hidden_size = input_size, hidden_size
        draw, rows = init.uniform(1 / math.sqrt(hidden_size)), cell.gates * hidden_size
        self.weight_ih = nnx.Param(draw(rngs.params(), (rows, input_size)))
        self.weight_hh = nnx.Param(draw(rngs.params(), (rows, hidden_size)))
        self.bias_ih: Any = optional(draw(rngs.params(), (rows,)) if bias else None)
        self.bias_hh: Any = optional(draw(rngs.params(), (rows,)) if bias else None)

    @unbatched(1, {"state": 0}, 0)
    def _step(
        self, input: Float[Array, "*n i"], state: tuple[Float[Array, "..."], ...] | None, count: int = 1
    ) -> tuple[Float[Array, "..."], ...]:
        if input.shape[1] != self.input_size:
            raise DataError(f"the input has {input.shape[1]} features, input_size is {self.input_size}")
        shape = (len(input), self.hidden_size)
        state = (jnp.zeros(shape, input.dtype),) * count if state is None else state
        for leaf in state:
            if leaf.shape != shape:
                raise DataError(f"the hidden state has shape {leaf.shape}, the input needs {shape}")
        product, hidden = input @ self.weight_ih[...].T, state[0] @ self.weight_hh[...].T
        if self.bias_ih is not None:
            product, hidden = product + self.bias_ih[...], hidden + self.bias_hh[...]
        return self.cell.forward(product, hidden, None, state)[0]


class RNNCell(RecurrentCell):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman 1990). Shapes and errors: `RecurrentCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        rngs: nnx.Rngs,
    ):
        cells = {"tanh": TANH, "relu": RELU}
        if nonlinearity not in cells:
            raise unknown("nonlinearity", nonlinearity, cells)
        self.nonlinearity = nonlinearity
        super().__init__(cells[nonlinearity], input_size, hidden_size, bias, rngs)

    def __call__(
        self, input: Float[Array, "*n i"], hx: Float[Array, "*m h"] | None = None
    ) -> Float[Array, "*n h"]:
        return self._step(input, None if hx is None else (hx,))[0]


class LSTMCell(RecurrentCell):
    """Gates in the order i, f, g, o (Hochreiter and Schmidhuber 1997); the state is (h, c).

    Shapes and errors: `RecurrentCell`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, *, rngs: nnx.Rngs):
        super().__init__(LSTM_CELL, input_size, hidden_size, bias, rngs)

    def __call__(
        self,
        input: Float[Array, "*n i"],
        hx: tuple[Float[Array, "*m h"], Float[Array, "*m h"]] | None = None,
    ) -> tuple[Float[Array, "*n h"], Float[Array, "*n h"]]:
        h, c = self._step(input, hx, 2)
        return h, c


class GRUCell(RecurrentCell):
    """Gates in the order r, z, n; n = tanh(W_in x + b_in + r * (W_hn h + b_hn)) (Cho et al. 2014).

    Shapes and errors: `RecurrentCell`.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, *, rngs: nnx.Rngs):
        super().__init__(GRU_CELL, input_size, hidden_size, bias, rngs)

    def __call__(
        self, input: Float[Array, "*n i"], hx: Float[Array, "*m h"] | None = None
    ) -> Float[Array, "*n h"]:
        return self._step(input, None if hx is None else (hx,))[0]
