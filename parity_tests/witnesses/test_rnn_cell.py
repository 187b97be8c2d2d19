"""Recurrent cells = torch's, every option, in a batch and alone; a cell in a loop = the layer."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from comparison import assert_close, assert_same_vjp, jax_vjp, torch_vjp
from jaxarch import nn
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import DataError, UsageError

BATCH, WIDTH, HIDDEN = 5, 3, 4
CELLS = {
    "tanh": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu", "bias": False}),
    "LSTM": ("LSTMCell", {}),
    "LSTM without bias": ("LSTMCell", {"bias": False}),
    "GRU": ("GRUCell", {}),
    "GRU without bias": ("GRUCell", {"bias": False}),
}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def build(kind):
    name, arguments = CELLS[kind]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(WIDTH, HIDDEN, **arguments).double()
    ours = getattr(nn, name)(WIDTH, HIDDEN, **arguments, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    return theirs, ours


def step(cell, x, h=None, c=None):
    state = h if c is None else (h, c)
    found = cell(x, state)
    return dict(zip("hc", found, strict=True)) if isinstance(found, tuple) else {"h": found}


@pytest.mark.parametrize("kind", CELLS)
def test_torch_equals_jax(kind):
    theirs, ours = build(kind)
    inputs = {"x": draw(1, BATCH, WIDTH), "h": draw(2, BATCH, HIDDEN)}
    if "LSTM" in kind:
        inputs["c"] = draw(3, BATCH, HIDDEN)
    expected, cotangents = torch_vjp(theirs, inputs, call=step)
    assert_same_vjp(jax_vjp(ours, step)(inputs, cotangents), expected)
    alone = {k: v[0] for k, v in inputs.items()}
    rows = step(ours, **{k: jnp.asarray(v) for k, v in alone.items()})
    assert_close(rows, {k: v[0] for k, v in expected.outputs.items()})
    x = alone["x"]
    assert_close(step(ours, jnp.asarray(x)), step(theirs, torch.tensor(x)))  # from a state of zeros


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_loop_over_the_cell_is_the_layer(kind):
    cell = getattr(nn, f"{kind}Cell")(WIDTH, HIDDEN, rngs=nnx.Rngs(0))
    layer = getattr(nn, kind)(WIDTH, HIDDEN, rngs=nnx.Rngs(1))
    load_state_dict(layer, {f"{k}_l0": v for k, v in to_state_dict(cell).items()})
    x, state, outputs = jnp.asarray(draw(1, 6, BATCH, WIDTH)), None, []
    for frame in x:
        state = cell(frame, state)
        outputs.append(state[0] if kind == "LSTM" else state)
    assert_close(jnp.stack(outputs), layer(x)[0])


def test_errors():
    cell = nn.GRUCell(WIDTH, HIDDEN, rngs=nnx.Rngs(0))
    x = jnp.zeros((2, WIDTH))
    with pytest.raises(DataError, match="the input has 2 features, input_size is 3"):
        cell(x[..., :2])
    with pytest.raises(DataError, match="2 axes, or 1 without a batch"):
        cell(x[None])
    for shape in ((2, HIDDEN + 1), (3, HIDDEN), (HIDDEN,), (2, 1, 1, HIDDEN)):
        with pytest.raises(DataError, match="the hidden state has shape"):
            cell(x, jnp.zeros(shape))
    with pytest.raises(UsageError, match="hidden_size must be a positive integer, not 0"):
        nn.LSTMCell(WIDTH, 0, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="did you mean 'relu'"):
        nn.RNNCell(WIDTH, HIDDEN, nonlinearity="rel", rngs=nnx.Rngs(0))
