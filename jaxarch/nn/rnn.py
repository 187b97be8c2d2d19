"""RNN, LSTM and GRU with torch's names, gate order and two biases.

Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014, with the reset gate applied after the product.
The input's product is one large product outside the scan of `kernels.recurrent`.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.kernels import lstm_cudnn
from jaxarch.nn.kernels.recurrent import (
    GRU_CELL,
    LSTM_CELL,
    RELU,
    TANH,
    Cell,
    State,
    States,
    recur,
    zero_past_end,
)
from jaxarch.nn.masks import length_mask
from jaxarch.nn.module import Module


class Recurrent(Module):
    """The base class of RNN, LSTM and GRU; see torch.nn for the arguments.

    x (B, T, input_size), or (T, B, input_size) if not batch_first, lengths (B,) in [1, T] or None,
    initial_state (num_layers * dirs, B, hidden_size) or None for zeros
    -> outputs (B, T, hidden_size * dirs), final state of the initial state's form.

    With `lengths` it matches torch's packed sequences, sorted or not: outputs are zero at and past the
    length, final states are those of the last valid step, the reverse direction starts there, and nothing
    past the length has any influence. `drop` acts on the outputs of every layer but the last.

    Raises:
        UsageError: a size is not positive, or dropout is given for a single layer, where it does nothing.
        DataError: x, lengths or the initial state do not fit each other; outside jit, a length out of range.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        rngs: nnx.Rngs,
    ):
        if min(input_size, hidden_size, num_layers) < 1:
            raise UsageError("input_size, hidden_size and num_layers must be positive")
        if dropout and num_layers == 1:
            raise UsageError(f"dropout {dropout} acts between layers and there is one: set num_layers or 0.0")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional = bidirectional
        self.drop = Dropout(dropout, rngs=rngs)
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        draw = init.uniform(1 / math.sqrt(hidden_size))
        rows = cell.gates * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self.suffixes)
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, width),
                "weight_hh": (rows, hidden_size),
            }
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            for suffix in self.suffixes:
                for name, shape in shapes.items():
                    setattr(self, f"{name}_l{layer}{suffix}", nnx.Param(draw(rngs.params(), shape)))

    def _run(
        self, x: Float[Array, "_ _ i"], lengths: Int[Array, " b"] | None, states: State
    ) -> tuple[Float[Array, "_ _ o"], State]:
        """-> outputs, final states; `states` is a tuple of (layers * dirs, B, H)."""
        x = x.swapaxes(0, 1) if self.batch_first else x
        steps, batch, width = x.shape
        self._check(width, batch, lengths, states)
        mask = None if lengths is None else length_mask(lengths, steps).T[..., None]
        # Not even a NaN past the length may reach a gradient.
        x = zero_past_end(mask, x)
        dirs = len(self.suffixes)
        final: list[State] = []
        for layer in range(self.num_layers):
            indices = range(layer * dirs, (layer + 1) * dirs)
            layer_states = tuple(tuple(s[k] for s in states) for k in indices)
            layer_final, x = self._layer(layer, x, mask, layer_states)
            final.extend(layer_final)
            x = zero_past_end(mask, x)
            if layer < self.num_layers - 1:
                x = self.drop(x.swapaxes(0, 1)).swapaxes(0, 1) if self.batch_first else self.drop(x)
        x = x.swapaxes(0, 1) if self.batch_first else x
        return x, tuple(jnp.stack(leaves) for leaves in zip(*final, strict=True))

    def _layer(
        self, layer: int, x: Float[Array, "t b i"], mask: Bool[Array, "t b 1"] | None, states: States
    ) -> tuple[States, Float[Array, "t b o"]]:
        xs, weights, biases, masks = [], [], [], []
        for suffix in self.suffixes:
            w_ih, w_hh = self._leaf("weight_ih", layer, suffix), self._leaf("weight_hh", layer, suffix)
            # The reverse direction keeps its initial state until it meets the last valid step.
            directed = jnp.flip(x, 0) if suffix else x
            input_bias, hidden_bias = self._biases(layer, suffix)
            product = directed @ w_ih.T
            xs.append(product if input_bias is None else product + input_bias)
            weights.append(w_hh)
            biases.append(hidden_bias)
            masks.append(jnp.flip(mask, 0) if suffix and mask is not None else mask)
        final, ys = recur(self.cell, tuple(xs), tuple(weights), tuple(biases), states, tuple(masks))
        ys = tuple(jnp.flip(y, 0) if suffix else y for y, suffix in zip(ys, self.suffixes, strict=True))
        return final, jnp.concatenate(ys, -1)

    def _leaf(self, name: str, layer: int, suffix: str) -> Float[Array, "..."]:
        return getattr(self, f"{name}_l{layer}{suffix}")[...]

    def _biases(self, layer: int, suffix: str) -> tuple[Float[Array, " g"] | None, Float[Array, " h"] | None]:
        """What is added to the input's product, and what the cell adds to the hidden's."""
        if not self.bias:
            return None, None
        return self._leaf("bias_ih", layer, suffix) + self._leaf("bias_hh", layer, suffix), None

    def _zeros(self, x: Float[Array, "_ _ i"]) -> Float[Array, "l b h"]:
        batch = x.shape[0 if self.batch_first else 1]
        return jnp.zeros((self.num_layers * len(self.suffixes), batch, self.hidden_size), x.dtype)

    def _check(self, width: int, batch: int, lengths: Array | None, states: State) -> None:
        if width != self.input_size:
            raise DataError(f"x has {width} features, input_size is {self.input_size}")
        if lengths is not None and lengths.shape != (batch,):
            raise DataError(f"lengths has shape {lengths.shape}, the batch needs {(batch,)}")
        expected = (self.num_layers * len(self.suffixes), batch, self.hidden_size)
        for state in states:
            if state.shape != expected:
                raise DataError(f"an initial state has shape {state.shape}, the layer needs {expected}")


class RNN(Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman 1990). Shapes and errors: `Recurrent`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        cells = {"tanh": TANH, "relu": RELU}
        if nonlinearity not in cells:
            raise unknown("nonlinearity", nonlinearity, cells)
        self.nonlinearity = nonlinearity
        super().__init__(
            cells[nonlinearity],
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            rngs,
        )

    def __call__(
        self,
        x: Float[Array, "b t i"],
        lengths: Int[Array, " n"] | None = None,
        initial_state: Float[Array, "l n h"] | None = None,
    ) -> tuple[Float[Array, "b t o"], Float[Array, "l n h"]]:
        y, (h,) = self._run(x, lengths, (self._zeros(x) if initial_state is None else initial_state,))
        return y, h


class LSTM(Recurrent):
    """Gates in the order i, f, g, o (Hochreiter and Schmidhuber 1997); the state is (h, c).

    On an NVIDIA GPU cuDNN computes it where that fits, once `cudnn_lstm()` has been called. Shapes and errors:
    `Recurrent`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            LSTM_CELL, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, rngs
        )

    def __call__(
        self,
        x: Float[Array, "b t i"],
        lengths: Int[Array, " n"] | None = None,
        initial_state: tuple[Float[Array, "l n h"], Float[Array, "l n h"]] | None = None,
    ) -> tuple[Float[Array, "b t o"], tuple[Float[Array, "l n h"], Float[Array, "l n h"]]]:
        states = (self._zeros(x), self._zeros(x)) if initial_state is None else initial_state
        drops = self.dropout > 0 and not self.drop.deterministic
        if lstm_cudnn.serves(x, self._leaf("weight_hh", 0, ""), lengths, drops):
            x = x if self.batch_first else x.swapaxes(0, 1)
            self._check(x.shape[2], x.shape[0], None, states)
            biases = self._pairs("bias") if self.bias else None
            y, h, c = lstm_cudnn.lstm(x, *states, self._pairs("weight"), biases, self.bidirectional)
            return y if self.batch_first else y.swapaxes(0, 1), (h, c)
        y, (h, c) = self._run(x, lengths, states)
        return y, (h, c)

    def _pairs(self, kind: str) -> list[tuple[Float[Array, "..."], Float[Array, "..."]]]:
        """The input's and the hidden state's weights or biases of every direction of every layer."""
        return [
            (self._leaf(f"{kind}_ih", layer, suffix), self._leaf(f"{kind}_hh", layer, suffix))
            for layer in range(self.num_layers)
            for suffix in self.suffixes
        ]


class GRU(Recurrent):
    """Gates in the order r, z, n; n = tanh(W_in x + b_in + r * (W_hn h + b_hn)) (Cho et al. 2014).

    Shapes and errors: `Recurrent`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            GRU_CELL, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, rngs
        )

    def __call__(
        self,
        x: Float[Array, "b t i"],
        lengths: Int[Array, " n"] | None = None,
        initial_state: Float[Array, "l n h"] | None = None,
    ) -> tuple[Float[Array, "b t o"], Float[Array, "l n h"]]:
        y, (h,) = self._run(x, lengths, (self._zeros(x) if initial_state is None else initial_state,))
        return y, h

    def _biases(self, layer: int, suffix: str) -> tuple[Float[Array, " g"] | None, Float[Array, " h"] | None]:
        if not self.bias:
            return None, None
        b_ih, b_hh = self._leaf("bias_ih", layer, suffix), self._leaf("bias_hh", layer, suffix)
        # b_hn stands inside the reset gate's product, so it cannot join the input's.
        return b_ih + b_hh.at[2 * self.hidden_size :].set(0), b_hh[2 * self.hidden_size :]
