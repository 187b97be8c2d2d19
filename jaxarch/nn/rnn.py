"""RNN, LSTM and GRU with torch's names, gate order and two biases.

Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014, with the reset gate applied after the product.
The input's product is one large product outside the scan. The backward pass is written by hand: the forward
scan keeps the gates, the backward scan yields the gradient of each step's pre-activations, and the recurrent
weight's gradient is one large product of those. It differentiates in reverse mode (over which jax.jvp and
jax.hessian may run); jax.jvp of a layer alone is refused by JAX.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import cudnn, init
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.module import Module

# T time, B batch, H hidden, G gates * hidden.
State = tuple[Float[Array, "B H"], ...]


class Cell(NamedTuple):
    """One step of a recurrent layer, and its derivative. Batch-first arrays of one time step.

    advance: (input's product, hidden's product, hidden's bias or None, state) -> (state, what to keep)
    slopes: (kept, state before, state after) -> local derivatives; elementwise, so over all steps at once
    retreat: (slopes, gradient of the state after) -> (gradient of the hidden's product, gradient of the
        input's product where it is another, gradient of the state before but for the hidden's product)
    gates: how many products of width H a step needs
    """

    advance: Callable
    slopes: Callable
    retreat: Callable
    gates: int


def _rnn_cell(activation: Callable, slope: Callable) -> Cell:
    def advance(x, product, bias, state):
        return (activation(x + product),), ()

    def slopes(kept, before, after):
        return (slope(after[0]),)

    def retreat(slopes, d_state):
        d = d_state[0] * slopes[0]
        return d, None, (jnp.zeros_like(d),)

    return Cell(advance, slopes, retreat, 1)


def _lstm_advance(x, product, bias, state):
    i, f, g, o = jnp.split(x + product, 4, -1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * state[1] + i * g
    return (o * jnp.tanh(c), c), (i, f, g, o)


def _lstm_slopes(kept, before, after):
    i, f, g, o = kept
    tanh_c = jnp.tanh(after[1])
    d_gates = g * i * (1 - i), before[1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)
    return o * (1 - tanh_c * tanh_c), f, d_gates


def _lstm_retreat(slopes, d_state):
    d_tanh, f, (i, f_gate, g, o) = slopes
    d_h, d_c = d_state
    d_c = d_c + d_h * d_tanh
    d_product = jnp.concatenate([d_c * i, d_c * f_gate, d_c * g, d_h * o], -1)
    return d_product, None, (jnp.zeros_like(d_h), d_c * f)


def _gru_advance(x, product, bias, state):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, -1), jnp.split(product, 3, -1)
    if bias is not None:
        h_n = h_n + bias
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * state[0],), (r, z, n, h_n)


def _gru_slopes(kept, before, after):
    r, z, n, h_n = kept
    d_n = (1 - z) * (1 - n * n)
    return d_n * h_n * r * (1 - r), (before[0] - n) * z * (1 - z), d_n * r, d_n, z


def _gru_retreat(slopes, d_state):
    r, z_gate, h_n, x_n, z = slopes
    d_h = d_state[0]
    d_r, d_z = d_h * r, d_h * z_gate
    return jnp.concatenate([d_r, d_z, d_h * h_n], -1), d_h * x_n, (d_h * z,)


RELU = _rnn_cell(jax.nn.relu, lambda y: (y > 0).astype(y.dtype))
TANH = _rnn_cell(jnp.tanh, lambda y: 1 - y * y)
LSTM_CELL = Cell(_lstm_advance, _lstm_slopes, _lstm_retreat, 4)
GRU_CELL = Cell(_gru_advance, _gru_slopes, _gru_retreat, 3)

# Two steps a turn save some of the loop's own cost at small sizes; more only compiles longer.
_UNROLL = 2


def _choose(mask: Bool[Array, "*batch 1"] | None, yes, no):
    """`yes` where a step is within its sequence, `no` past its end; leaf by leaf."""
    return yes if mask is None else jax.tree.map(lambda a, b: jnp.where(mask, a, b), yes, no)


def _zeroed(mask: Bool[Array, "*batch 1"] | None, values):
    """`values` with zeros past the end of a sequence; leaf by leaf."""
    return values if mask is None else jax.tree.map(lambda a: jnp.where(mask, a, 0), values)


@functools.partial(jax.jit, static_argnums=0)
def scan(cell: Cell, xs, weights, biases, states, masks):
    """Run a cell over time, plainly: JAX can differentiate this too, but slower than `recur`.

    Every argument is a tuple with an entry per direction; both directions advance in one loop. A masked
    step leaves the state as it was.

    Args:
        xs: the inputs' products (T, B, G), each in its direction's order of time.
        weights: (G, H). biases: (H,) or None, what the cell adds to the hidden's product.
        states: the initial states, tuples of (B, H). masks: (T, B, 1) bool, or None.

    Returns:
        final states, the states after every step (T, B, H), what the cell kept of every step.
    """
    turned = tuple(weight.T for weight in weights)

    def step(before, now):
        after, kept = [], []
        for state, weight, bias, x, mask in zip(before, turned, biases, *now, strict=True):
            new, keep = cell.advance(x, state[0] @ weight, bias, state)
            after.append(_choose(mask, new, state))
            kept.append(keep)
        return tuple(after), (tuple(after), tuple(kept))

    final, (after, kept) = lax.scan(step, states, (xs, masks), unroll=_UNROLL)
    return final, after, kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: Cell, xs, weights, biases, states, masks):
    """`scan` with the backward pass by hand: -> (final states, hidden states of every step (T, B, H))."""
    final, after, _ = scan(cell, xs, weights, biases, states, masks)
    return final, tuple(state[0] for state in after)


def _recur_forward(cell, xs, weights, biases, states, masks):
    final, after, kept = scan(cell, xs, weights, biases, states, masks)
    return (final, tuple(state[0] for state in after)), (weights, biases, states, masks, after, kept)


@functools.partial(jax.jit, static_argnums=0)
def _recur_backward(cell, residuals, cotangents):
    weights, biases, states, masks, after, kept = residuals
    shift = functools.partial(jax.tree.map, lambda first, rest: jnp.concatenate([first[None], rest[:-1]]))
    before = shift(states, after)
    slopes = tuple(map(cell.slopes, kept, before, after))

    def step(d_after, now):
        d_before, d_products = [], []
        for (d_h, *d_rest), weight, slope, d_y, mask in zip(d_after, weights, *now, strict=True):
            d_state = (d_h + d_y, *d_rest)
            d_product, d_input, (direct, *rest) = cell.retreat(slope, d_state)
            d_product, d_input = _zeroed(mask, (d_product, d_input))
            d_before.append(_choose(mask, (direct + d_product @ weight, *rest), d_state))
            d_products.append((d_product, d_input))
        return tuple(d_before), tuple(d_products)

    final, hiddens = cotangents
    d_states, d_products = lax.scan(step, final, (slopes, hiddens, masks), reverse=True, unroll=_UNROLL)
    d_weights = tuple(
        jnp.einsum("tbg,tbh->gh", d, state[0]) for (d, _), state in zip(d_products, before, strict=True)
    )
    d_xs, d_biases, width = [], [], weights[0].shape[1]
    for (d_product, d_input), bias in zip(d_products, biases, strict=True):
        shared = d_product[..., :-width]
        d_xs.append(d_product if d_input is None else jnp.concatenate([shared, d_input], -1))
        d_biases.append(None if bias is None else d_product[..., -width:].sum((0, 1)))
    return tuple(d_xs), d_weights, tuple(d_biases), d_states, None


recur.defvjp(_recur_forward, _recur_backward)


def length_mask(lengths: Int[Array, " b"], steps: int) -> Bool[Array, "b t"]:
    """True before each length. Under jit the values are unknown and only the shape is checked.

    Raises:
        DataError: a length is not in [1, steps]; it is named.
    """
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        for row in np.flatnonzero((values < 1) | (values > steps)):
            raise DataError(f"length {values[row]} of row {row} is out of range: it must be in [1, {steps}]")
    return jnp.arange(steps, dtype=lengths.dtype) < lengths[:, None]


class Recurrent(Module):
    """What RNN, LSTM and GRU share; see torch.nn for the arguments.

    x (B, T, input_size), or (T, B, input_size) if not batch_first, lengths (B,) in [1, T] or None,
    initial_state (num_layers * dirs, B, hidden_size) or None for zeros
    -> outputs (B, T, hidden_size * dirs), final state of the initial state's form.

    With `lengths` all is as for torch's packed sequences, sorted or not: outputs are zero at and past the
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

    def _run(self, x, lengths, states):
        """-> outputs, final states; `states` is a tuple of (layers * dirs, B, H)."""
        x = x.swapaxes(0, 1) if self.batch_first else x
        steps, batch, width = x.shape
        self._check(width, batch, lengths, states)
        mask = None if lengths is None else length_mask(lengths, steps).T[..., None]
        # Not even a NaN past the length may reach a gradient.
        x = _zeroed(mask, x)
        dirs, final = len(self.suffixes), []
        for layer in range(self.num_layers):
            own = range(layer * dirs, (layer + 1) * dirs)
            last, x = self._layer(layer, x, mask, tuple(tuple(s[k] for s in states) for k in own))
            final.extend(last)
            x = _zeroed(mask, x)
            if layer < self.num_layers - 1:
                x = self.drop(x.swapaxes(0, 1)).swapaxes(0, 1) if self.batch_first else self.drop(x)
        x = x.swapaxes(0, 1) if self.batch_first else x
        return x, tuple(jnp.stack(leaves) for leaves in zip(*final, strict=True))

    def _layer(self, layer, x, mask, states):
        xs, weights, biases, masks = [], [], [], []
        for suffix in self.suffixes:
            w_ih, w_hh = self._leaf("weight_ih", layer, suffix), self._leaf("weight_hh", layer, suffix)
            # The reverse direction keeps its initial state until it meets the last valid step.
            turned = jnp.flip(x, 0) if suffix else x
            shift, inner = self._biases(layer, suffix)
            xs.append(turned @ w_ih.T if shift is None else turned @ w_ih.T + shift)
            weights.append(w_hh)
            biases.append(inner)
            masks.append(jnp.flip(mask, 0) if suffix and mask is not None else mask)
        final, ys = recur(self.cell, tuple(xs), tuple(weights), tuple(biases), states, tuple(masks))
        ys = tuple(jnp.flip(y, 0) if suffix else y for y, suffix in zip(ys, self.suffixes, strict=True))
        return final, jnp.concatenate(ys, -1)

    def _leaf(self, name, layer, suffix):
        return getattr(self, f"{name}_l{layer}{suffix}")[...]

    def _biases(self, layer, suffix):
        """What is added to the input's product, and what the cell adds to the hidden's."""
        if not self.bias:
            return None, None
        return self._leaf("bias_ih", layer, suffix) + self._leaf("bias_hh", layer, suffix), None

    def _zeros(self, x):
        batch = x.shape[0 if self.batch_first else 1]
        return jnp.zeros((self.num_layers * len(self.suffixes), batch, self.hidden_size), x.dtype)

    def _check(self, width, batch, lengths, states):
        if width != self.input_size:
            raise DataError(f"x has {width} features, input_size is {self.input_size}")
        if lengths is not None and lengths.shape != (batch,):
            raise DataError(f"lengths has shape {lengths.shape}, the batch needs {(batch,)}")
        want = (self.num_layers * len(self.suffixes), batch, self.hidden_size)
        for state in states:
            if state.shape != want:
                raise DataError(f"an initial state has shape {state.shape}, the layer needs {want}")


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
        if cudnn.serves(self, x, lengths):
            turned = x if self.batch_first else x.swapaxes(0, 1)
            self._check(turned.shape[2], turned.shape[0], None, states)
            y, h, c = cudnn.lstm(self, turned, *states)
            return y if self.batch_first else y.swapaxes(0, 1), (h, c)
        y, (h, c) = self._run(x, lengths, states)
        return y, (h, c)


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

    def _biases(self, layer, suffix):
        if not self.bias:
            return None, None
        b_ih, b_hh = self._leaf("bias_ih", layer, suffix), self._leaf("bias_hh", layer, suffix)
        # b_hn stands inside the reset gate's product, so it cannot join the input's.
        return b_ih + b_hh.at[2 * self.hidden_size :].set(0), b_hh[2 * self.hidden_size :]
