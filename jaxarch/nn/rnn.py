"""RNN, LSTM and GRU with torch's names, gate order and two biases.

Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014, with the reset gate applied after the product.
The input's product is one large product outside the scan of `kernels.recurrent`.
"""

import math
import warnings

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
from jaxarch.nn.unbatched import unbatched


def _batch_axis(layer: "Recurrent") -> int:
    return 0 if layer.batch_first else 1


class Recurrent(Module):
    """The base class of RNN, LSTM and GRU; see torch.nn for the arguments.

    input (T, B, input_size), or (B, T, input_size) if batch_first, or (T, input_size);
    hx (num_layers * dirs, B, hidden_size), without B where the input has none, or None for zeros
    -> outputs (T, B, hidden_size * dirs) in the order of the input, final state of the form of hx.

    With `lengths` (B,) in [1, T], or () without B, it matches torch's packed sequences, sorted or not:
    outputs are zero at and past the length, final states are those of the last valid step, the reverse
    direction starts there, and nothing past the length has any influence. `drop` acts on the outputs of every
    layer but the last; for a single layer dropout does nothing, of which it warns, as torch does.

    Raises:
        UsageError: a size is not positive, a flag is not a bool, or proj_size is not below hidden_size.
        DataError: input, hx or lengths do not fit each other or the weights; outside jit, a length out of range.
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
        proj_size: int = 0,
    ):
        check_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        check_flag(bias=bias, batch_first=batch_first)
        if not 0 <= proj_size < hidden_size:
            raise UsageError(f"proj_size must be in [0, hidden_size), not {proj_size} of {hidden_size}")
        if dropout and num_layers == 1:
            warnings.warn(f"dropout {dropout} acts between layers, and there is one", stacklevel=3)
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self.drop = Dropout(dropout, rngs=rngs)
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        draw = init.uniform(1 / math.sqrt(hidden_size))
        rows, width = cell.gates * hidden_size, proj_size or hidden_size
        for layer in range(num_layers):
            shapes: dict[str, tuple[int, ...]] = {
                "weight_ih": (rows, input_size if layer == 0 else width * len(self.suffixes)),
                "weight_hh": (rows, width),
            }
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if proj_size:
                shapes["weight_hr"] = (proj_size, hidden_size)
            for suffix in self.suffixes:
                for name, shape in shapes.items():
                    setattr(self, f"{name}_l{layer}{suffix}", nnx.Param(draw(rngs.params(), shape)))

    @unbatched(2, {"input": _batch_axis, "states": 1, "lengths": 0}, (_batch_axis, 1))
    def _call(
        self, input: Float[Array, "*batch i"], states: State | None, lengths: Int[Array, "*b"] | None
    ) -> tuple[Float[Array, "*batch o"], State]:
        return self._run(input, lengths, self._checked(input, lengths, states))

    def _run(
        self, x: Float[Array, "_ _ i"], lengths: Int[Array, "*b"] | None, states: State
    ) -> tuple[Float[Array, "_ _ o"], State]:
        x = x.swapaxes(0, 1) if self.batch_first else x
        mask = None if lengths is None else length_mask(lengths, len(x)).T[..., None]
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
        projections = None
        if self.proj_size:
            projections = tuple(self._leaf("weight_hr", layer, suffix) for suffix in self.suffixes)
        final, ys = recur(
            self.cell, tuple(xs), tuple(weights), tuple(biases), states, tuple(masks), projections
        )
        ys = tuple(jnp.flip(y, 0) if suffix else y for y, suffix in zip(ys, self.suffixes, strict=True))
        return final, jnp.concatenate(ys, -1)

    def _leaf(self, name: str, layer: int, suffix: str) -> Float[Array, "..."]:
        return getattr(self, f"{name}_l{layer}{suffix}")[...]

    def _biases(self, layer: int, suffix: str) -> tuple[Float[Array, " g"] | None, Float[Array, " h"] | None]:
        """What is added to the input's product, and what the cell adds to the hidden's."""
        if not self.bias:
            return None, None
        return self._leaf("bias_ih", layer, suffix) + self._leaf("bias_hh", layer, suffix), None

    def _state_sizes(self) -> tuple[int, ...]:
        """The width of each of a layer's states."""
        return (self.hidden_size,)

    def _checked(self, x: Float[Array, "_ _ i"], lengths: Array | None, states: State | None) -> State:
        """The initial states, zeros for None, after a check of everything that a call was given."""
        batch, width = x.shape[_batch_axis(self)], x.shape[2]
        if width != self.input_size:
            raise DataError(f"the input has {width} features, input_size is {self.input_size}")
        if lengths is not None and lengths.shape != (batch,):
            raise DataError(f"lengths has shape {lengths.shape}, the batch needs {(batch,)}")
        count = self.num_layers * len(self.suffixes)
        shapes = tuple((count, batch, size) for size in self._state_sizes())
        states = tuple(jnp.zeros(s, x.dtype) for s in shapes) if states is None else states
        for state, shape in zip(states, shapes, strict=True):
            if state.shape != shape:
                raise DataError(f"an initial state has shape {state.shape}, the layer needs {shape}")
        dtype = self._leaf("weight_hh", 0, "").dtype
        for value in (x, *states):
            if value.dtype != dtype:
                raise DataError(f"input or hx is {value.dtype}, the weights are {dtype}: cast one of them")
        return states


def check_positive(**sizes: int) -> None:
    """Refuse sizes that are not integers of at least 1.

    Raises:
        UsageError: naming the argument.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"{name} must be a positive integer, not {size!r}")


def check_flag(**flags: bool) -> None:
    """Refuse flags that are not booleans: one position too far to the left is easily missed.

    Raises:
        UsageError: naming the argument.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise UsageError(f"{name} must be True or False, not {flag!r}")


class RNN(Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman 1990). Shapes and errors: `Recurrent`."""

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
        input: Float[Array, "*batch i"],
        hx: Float[Array, "l *n h"] | None = None,
        *,
        lengths: Int[Array, "*b"] | None = None,
    ) -> tuple[Float[Array, "*batch o"], Float[Array, "l *n h"]]:
        y, (h,) = self._call(input, None if hx is None else (hx,), lengths)
        return y, h


class LSTM(Recurrent):
    """Gates in the order i, f, g, o (Hochreiter and Schmidhuber 1997); the state is (h, c).

    With proj_size P (Sak et al. 2014, arXiv:1402.1128) h and the outputs are W_hr h, of width P, and c keeps
    hidden_size. On an NVIDIA GPU cuDNN computes it where that fits, once `cudnn_lstm()` has been called.
    Shapes and errors: `Recurrent`.
    """

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
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            LSTM_CELL,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            rngs,
            proj_size,
        )

    def __call__(
        self,
        input: Float[Array, "*batch i"],
        hx: tuple[Float[Array, "l *n h"], Float[Array, "l *n c"]] | None = None,
        *,
        lengths: Int[Array, "*b"] | None = None,
    ) -> tuple[Float[Array, "*batch o"], tuple[Float[Array, "l *n h"], Float[Array, "l *n c"]]]:
        y, (h, c) = self._call(input, hx, lengths)
        return y, (h, c)

    def _run(
        self, x: Float[Array, "_ _ i"], lengths: Int[Array, "*b"] | None, states: State
    ) -> tuple[Float[Array, "_ _ o"], State]:
        drops = self.dropout > 0 and not self.drop.deterministic
        if not lstm_cudnn.serves(x, self._leaf("weight_hh", 0, ""), lengths, drops, bool(self.proj_size)):
            return super()._run(x, lengths, states)
        x = x if self.batch_first else x.swapaxes(0, 1)
        biases = self._pairs("bias") if self.bias else None
        h, c = states
        y, h, c = lstm_cudnn.lstm(x, h, c, self._pairs("weight"), biases, self.bidirectional)
        return y if self.batch_first else y.swapaxes(0, 1), (h, c)

    def _state_sizes(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

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
        batch_first: bool = False,
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
        input: Float[Array, "*batch i"],
        hx: Float[Array, "l *n h"] | None = None,
        *,
        lengths: Int[Array, "*b"] | None = None,
    ) -> tuple[Float[Array, "*batch o"], Float[Array, "l *n h"]]:
        y, (h,) = self._call(input, None if hx is None else (hx,), lengths)
        return y, h

    def _biases(self, layer: int, suffix: str) -> tuple[Float[Array, " g"] | None, Float[Array, " h"] | None]:
        if not self.bias:
            return None, None
        b_ih, b_hh = self._leaf("bias_ih", layer, suffix), self._leaf("bias_hh", layer, suffix)
        # b_hn stands inside the reset gate's product, so it cannot join the input's.
        return b_ih + b_hh.at[2 * self.hidden_size :].set(0), b_hh[2 * self.hidden_size :]
