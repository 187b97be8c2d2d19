"""The recurrence of RNN, LSTM and GRU over time, with its backward pass written by hand.

The forward scan keeps the gates, the backward scan yields the gradient of each step's pre-activations, and the
recurrent weight's gradient is one large product of those. It differentiates in reverse mode (over which jax.jvp
and jax.hessian may run); jax.jvp of `recur` alone is refused by JAX, unless the kernel "recurrent" is off.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxarch.nn.kernels.switches import is_enabled

# T time, B batch, H hidden, P projected hidden, G gates * hidden. An array of one step is (B, ...), one of all
# steps (T, B, ...).
State = tuple[Float[Array, "... B _"], ...]
Residuals = tuple[Array, ...]
Derivatives = tuple[Any, ...]
# An entry per direction.
Arrays = tuple[Array, ...]
OptionalArrays = tuple[Array | None, ...]
States = tuple[State, ...]
Tree = TypeVar("Tree")


class Cell(NamedTuple):
    """One step of a recurrent layer, and its derivative.

    forward: (input's product, hidden's product, hidden's bias or None, state) -> (new state, residuals)
    derivatives: (residuals, state, new state) -> local derivatives; elementwise, so over all steps at once
    backward: (local derivatives, gradient of the new state) -> (gradient of the hidden's product, gradient of
        the input's product where it differs, gradient of the state except through the hidden's product)
    gates: how many products of width H a step needs
    """

    forward: Callable[[Array, Array, Array | None, State], tuple[State, Residuals]]
    derivatives: Callable[[Residuals, State, State], Derivatives]
    backward: Callable[[Derivatives, State], tuple[Array, Array | None, State]]
    gates: int


def _rnn_cell(activation: Callable[[Array], Array], derivative: Callable[[Array], Array]) -> Cell:
    def forward(x: Array, product: Array, bias: Array | None, state: State) -> tuple[State, Residuals]:
        return (activation(x + product),), ()

    def derivatives(residuals: Residuals, state: State, new_state: State) -> Derivatives:
        return (derivative(new_state[0]),)

    def backward(derivatives: Derivatives, d_state: State) -> tuple[Array, Array | None, State]:
        d = d_state[0] * derivatives[0]
        return d, None, (jnp.zeros_like(d),)

    return Cell(forward, derivatives, backward, 1)


def _lstm_forward(x: Array, product: Array, bias: Array | None, state: State) -> tuple[State, Residuals]:
    i, f, g, o = jnp.split(x + product, 4, -1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * state[1] + i * g
    return (o * jnp.tanh(c), c), (i, f, g, o)


def _lstm_derivatives(residuals: Residuals, state: State, new_state: State) -> Derivatives:
    i, f, g, o = residuals
    tanh_c = jnp.tanh(new_state[1])
    d_gates = g * i * (1 - i), state[1] * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)
    return o * (1 - tanh_c * tanh_c), f, d_gates


def _lstm_backward(derivatives: Derivatives, d_state: State) -> tuple[Array, Array | None, State]:
    d_tanh, f, (i, f_gate, g, o) = derivatives
    d_h, d_c = d_state
    d_c = d_c + d_h * d_tanh
    d_product = jnp.concatenate([d_c * i, d_c * f_gate, d_c * g, d_h * o], -1)
    return d_product, None, (jnp.zeros_like(d_h), d_c * f)


def _gru_forward(x: Array, product: Array, bias: Array | None, state: State) -> tuple[State, Residuals]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, -1), jnp.split(product, 3, -1)
    if bias is not None:
        h_n = h_n + bias
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return ((1 - z) * n + z * state[0],), (r, z, n, h_n)


def _gru_derivatives(residuals: Residuals, state: State, new_state: State) -> Derivatives:
    r, z, n, h_n = residuals
    d_n = (1 - z) * (1 - n * n)
    return d_n * h_n * r * (1 - r), (state[0] - n) * z * (1 - z), d_n * r, d_n, z


def _gru_backward(derivatives: Derivatives, d_state: State) -> tuple[Array, Array | None, State]:
    r, z_gate, h_n, x_n, z = derivatives
    d_h = d_state[0]
    d_r, d_z = d_h * r, d_h * z_gate
    return jnp.concatenate([d_r, d_z, d_h * h_n], -1), d_h * x_n, (d_h * z,)


RELU = _rnn_cell(jax.nn.relu, lambda y: (y > 0).astype(y.dtype))
TANH = _rnn_cell(jnp.tanh, lambda y: 1 - y * y)
LSTM_CELL = Cell(_lstm_forward, _lstm_derivatives, _lstm_backward, 4)
GRU_CELL = Cell(_gru_forward, _gru_derivatives, _gru_backward, 3)

# Two steps per iteration save some of the loop's own cost at small sizes; more only compiles longer.
_UNROLL = 2


def select(mask: Bool[Array, "*batch 1"] | None, valid: Tree, past: Tree) -> Tree:
    """`valid` where a step is within its sequence, `past` beyond its end; leaf by leaf."""
    return valid if mask is None else jax.tree.map(lambda a, b: jnp.where(mask, a, b), valid, past)


def zero_past_end(mask: Bool[Array, "*batch 1"] | None, values: Tree) -> Tree:
    """`values` with zeros past the end of a sequence; leaf by leaf."""
    return values if mask is None else jax.tree.map(lambda a: jnp.where(mask, a, 0), values)


@functools.partial(jax.jit, static_argnums=0)
def scan(
    cell: Cell,
    xs: Arrays,
    weights: Arrays,
    biases: OptionalArrays,
    states: States,
    masks: OptionalArrays,
    projections: Arrays | None = None,
) -> tuple[States, States, tuple[Residuals, ...]]:
    """Run a cell over time, plainly: JAX can differentiate this too, but more slowly than `recur`.

    Every argument is a tuple with an entry per direction; both directions advance in one loop. A masked
    step leaves the state as it is.

    Args:
        xs: the inputs' products (T, B, G), each in its direction's order of time.
        weights: (G, H). biases: (H,) or None, what the cell adds to the hidden's product.
        states: the initial states, tuples of (B, H). masks: (T, B, 1) bool, or None.
        projections: (P, H), by which the new hidden state becomes (B, P), as an LSTM's with proj_size.

    Returns:
        final states, the states after every step (T, B, H), the residuals of every step.
    """
    transposed = tuple(weight.T for weight in weights)
    projected = projections or (None,) * len(weights)

    def step(states: States, inputs: tuple[Arrays, OptionalArrays]) -> tuple[States, Any]:
        new_states, residuals = [], []
        for state, weight, bias, projection, x, mask in zip(
            states, transposed, biases, projected, *inputs, strict=True
        ):
            new_state, residual = cell.forward(x, state[0] @ weight, bias, state)
            if projection is not None:
                new_state = (new_state[0] @ projection.T, *new_state[1:])
            new_states.append(select(mask, new_state, state))
            residuals.append(residual)
        return tuple(new_states), (tuple(new_states), tuple(residuals))

    final, (new_states, residuals) = lax.scan(step, states, (xs, masks), unroll=_UNROLL)
    return final, new_states, residuals


def recur(
    cell: Cell,
    xs: Arrays,
    weights: Arrays,
    biases: OptionalArrays,
    states: States,
    masks: OptionalArrays,
    projections: Arrays | None = None,
) -> tuple[States, Arrays]:
    """Run a cell over time: arguments as `scan` -> (final states, hidden states of every step (T, B, H)).

    With projections JAX differentiates the scan: the backward pass by hand does not know them.
    """
    if is_enabled("recurrent") and projections is None:
        return _recur(cell, xs, weights, biases, states, masks)
    final, new_states, _ = scan(cell, xs, weights, biases, states, masks, projections)
    return final, tuple(state[0] for state in new_states)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recur(
    cell: Cell, xs: Arrays, weights: Arrays, biases: OptionalArrays, states: States, masks: OptionalArrays
) -> tuple[States, Arrays]:
    final, new_states, _ = scan(cell, xs, weights, biases, states, masks)
    return final, tuple(state[0] for state in new_states)


def _recur_forward(
    cell: Cell, xs: Arrays, weights: Arrays, biases: OptionalArrays, states: States, masks: OptionalArrays
) -> tuple[tuple[States, Arrays], Any]:
    final, new_states, residuals = scan(cell, xs, weights, biases, states, masks)
    saved = weights, biases, states, masks, new_states, residuals
    return (final, tuple(state[0] for state in new_states)), saved


@functools.partial(jax.jit, static_argnums=0)
def _recur_backward(cell: Cell, saved: Any, cotangents: tuple[States, Arrays]) -> Any:
    weights, biases, initial, masks, new_states, residuals = saved
    shift = functools.partial(jax.tree.map, lambda first, later: jnp.concatenate([first[None], later[:-1]]))
    states = shift(initial, new_states)
    derivatives = tuple(map(cell.derivatives, residuals, states, new_states))

    def step(d_new_states: States, inputs: Any) -> tuple[States, Any]:
        d_states, d_products = [], []
        for (d_h, *d_other), weight, derivative, d_y, mask in zip(
            d_new_states, weights, *inputs, strict=True
        ):
            d_state = (d_h + d_y, *d_other)
            d_product, d_input, (direct, *others) = cell.backward(derivative, d_state)
            d_product, d_input = zero_past_end(mask, (d_product, d_input))
            d_states.append(select(mask, (direct + d_product @ weight, *others), d_state))
            d_products.append((d_product, d_input))
        return tuple(d_states), tuple(d_products)

    final, hiddens = cotangents
    d_states, d_products = lax.scan(step, final, (derivatives, hiddens, masks), reverse=True, unroll=_UNROLL)
    d_weights = tuple(
        jnp.einsum("tbg,tbh->gh", d, state[0]) for (d, _), state in zip(d_products, states, strict=True)
    )
    d_xs, d_biases, width = [], [], weights[0].shape[1]
    for (d_product, d_input), bias in zip(d_products, biases, strict=True):
        shared = d_product[..., :-width]
        d_xs.append(d_product if d_input is None else jnp.concatenate([shared, d_input], -1))
        d_biases.append(None if bias is None else d_product[..., -width:].sum((0, 1)))
    return tuple(d_xs), d_weights, tuple(d_biases), d_states, None


_recur.defvjp(_recur_forward, _recur_backward)
