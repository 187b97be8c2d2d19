"""Recurrent layers and Luong attention = torch's, packed sequences and training included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torchref.nn as reference
from comparison import assert_close, assert_same_vjp, jax_vjp, torch_vjp
from jaxarch import nn, state
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels import lstm_cudnn, recurrent, switches

BATCH, STEPS, WIDTH, HIDDEN = 5, 6, 3, 4
UNSORTED = np.array([3, 6, 1, 6, 4])
KINDS = {"tanh": "RNN", "relu": "RNN", "LSTM": "LSTM", "GRU": "GRU"}
DEEP = {"num_layers": 2, "bidirectional": True}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def build(kind, **arguments):
    """The same layer three times: torch.nn's own, torchref's and ours, with the same weights."""
    if KINDS[kind] == "RNN":
        arguments["nonlinearity"] = kind
    torch.manual_seed(0)
    theirs = getattr(torch.nn, KINDS[kind])(WIDTH, HIDDEN, batch_first=True, **arguments).double()
    twin = getattr(reference, KINDS[kind])(WIDTH, HIDDEN, batch_first=True, **arguments).double()
    twin.load_state_dict(theirs.state_dict())
    ours = getattr(nn, KINDS[kind])(WIDTH, HIDDEN, batch_first=True, **arguments, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    return theirs, twin, ours


def initial(kind, layer, batch=BATCH):
    """An initial state drawn for a torch layer, as a tuple of arrays."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or HIDDEN, HIDDEN)[: 1 + (kind == "LSTM")]
    return tuple(draw(7 + k, count, batch, size) for k, size in enumerate(sizes))


def form(kind, states):
    """A tuple of states as the layer takes it."""
    return tuple(states) if kind == "LSTM" else states[0]


def leaves(outputs, final):
    return (outputs, *final) if isinstance(final, tuple) else (outputs, final)


def torch_run(layer, x, lengths=None, states=None):
    """torch.nn's own packing -> outputs, final states, as a flat tuple."""
    if lengths is None:
        return leaves(*layer(x, states))
    lengths = torch.as_tensor(lengths)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    outputs, final = layer(packed, states)
    return leaves(pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])[0], final)


def jax_run(layer, x, lengths=None, states=None):
    return leaves(*layer(x, states, lengths=lengths))


def inputs_of(kind, lengths, states):
    """The named inputs of a layer, without those that are None."""
    inputs = {"x": draw(1, BATCH, STEPS, WIDTH), "lengths": lengths}
    inputs["states"] = None if states is None else form(kind, states)
    return {k: v for k, v in inputs.items() if v is not None}


def assert_layers_agree(theirs, run, inputs):
    """torch.nn's outputs and gradients are ours, for one random cotangent."""
    expected, cotangents = torch_vjp(theirs, inputs, call=torch_run)
    actual = run(inputs, cotangents)
    assert set(actual.parameters) == {name for name, _ in theirs.named_parameters()}
    assert_same_vjp(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "lengths", "carried"),
    [
        ({"bias": False}, None, False),
        ({"bidirectional": True}, UNSORTED, False),
        ({"num_layers": 2}, None, True),
        (DEEP, UNSORTED, True),
    ],
    ids=["plain", "bidirectional", "deep", "all"],
)
def test_torch_equals_jax(kind, arguments, lengths, carried):
    theirs, twin, ours = build(kind, **arguments)
    states = initial(kind, theirs) if carried else None
    assert_layers_agree(theirs, jax_vjp(ours, jax_run), inputs_of(kind, lengths, states))
    with torch.no_grad():  # and torchref's twin is torch.nn
        x = torch.tensor(draw(1, BATCH, STEPS, WIDTH))
        start = None if states is None else form(kind, [torch.tensor(s) for s in states])
        again = leaves(*twin(x, start, lengths=None if lengths is None else torch.tensor(lengths)))
        for a, b in zip(again, torch_run(theirs, x, lengths, start), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("bias", [True, False])
def test_projected(bias):
    """proj_size with lengths, states, both directions and layers; the cell state keeps its width."""
    theirs, twin, ours = build("LSTM", **DEEP, proj_size=2, bias=bias, dropout=0.5)
    theirs.eval()
    ours.eval()
    states = initial("LSTM", theirs)
    assert_layers_agree(theirs, jax_vjp(ours, jax_run), inputs_of("LSTM", UNSORTED, states))
    x, start = torch.tensor(draw(1, BATCH, STEPS, WIDTH)), [torch.tensor(s) for s in states]
    twin.drop.p = 0.0  # train mode takes the twin's own path, layer by layer
    again = leaves(*twin(x, tuple(start), lengths=torch.tensor(UNSORTED)))
    for a, b in zip(again, torch_run(theirs, x, UNSORTED, tuple(start)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch_first", [True, False])
def test_without_a_batch_axis(batch_first):
    """(T, input_size) is a batch of one, in both orders, with states and without."""
    layer = nn.LSTM(WIDTH, HIDDEN, batch_first=batch_first, **DEEP, proj_size=2, rngs=nnx.Rngs(0))
    theirs = torch.nn.LSTM(WIDTH, HIDDEN, batch_first=batch_first, **DEEP, proj_size=2).double()
    load_state_dict(layer, theirs.state_dict())
    x, states = draw(1, STEPS, WIDTH), tuple(s[:, 0] for s in initial("LSTM", theirs))
    for hx in (None, states):
        given = None if hx is None else tuple(map(torch.tensor, hx))
        expected = leaves(*theirs(torch.tensor(x), given))
        assert_close(leaves(*layer(jnp.asarray(x), jax.tree.map(jnp.asarray, hx))), expected)


@functools.cache
def deep(kind):
    theirs, _, ours = build(kind, **DEEP)
    return theirs, ours, jax_vjp(ours, jax_run)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, STEPS), min_size=BATCH, max_size=BATCH), st.sampled_from(["LSTM", "GRU"]))
def test_any_lengths(lengths, kind):
    theirs, _, run = deep(kind)
    lengths = np.array(lengths)
    inputs = inputs_of(kind, lengths, initial(kind, theirs))
    assert_layers_agree(theirs, run, inputs)

    # Values past the length, even NaN, change no bit.
    past, x = np.arange(STEPS) >= lengths[:, None], inputs["x"]
    ones = leaves(np.ones((BATCH, STEPS, 2 * HIDDEN)), inputs["states"])
    results = []
    for filler in (x, np.nan):
        padded = np.where(past[..., None], filler, x)
        results.append(run({**inputs, "x": padded}, {str(i): v for i, v in enumerate(ones)}))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert not results[0].outputs["0"][past].any()
    assert not results[0].inputs["x"][past].any()


CELLS = {
    "tanh": recurrent.TANH,
    "relu": recurrent.RELU,
    "LSTM": recurrent.LSTM_CELL,
    "GRU": recurrent.GRU_CELL,
}


@pytest.mark.parametrize("kind", CELLS)
def test_hand_written_backward_is_the_scans_own(kind):
    cell, width = CELLS[kind], CELLS[kind].gates * HIDDEN
    mask = jnp.asarray(np.arange(STEPS)[:, None, None] < UNSORTED[:, None])
    both = range(2)
    xs = tuple(jnp.asarray(draw(d, STEPS, BATCH, width)) for d in both)
    weights = tuple(jnp.asarray(draw(2 + d, width, HIDDEN)) for d in both)
    biases = tuple(jnp.asarray(draw(4 + d, HIDDEN)) if kind == "GRU" else None for d in both)
    states = tuple(
        tuple(jnp.asarray(draw(6 + d + 2 * k, BATCH, HIDDEN)) for k in range(1 + (kind == "LSTM")))
        for d in both
    )

    def by_hand(*arguments):
        final, hiddens = recurrent.recur(cell, *arguments, (mask, None))
        return loss(final, hiddens)

    def plain(*arguments):
        final, after, _ = recurrent.scan(cell, *arguments, (mask, None))
        return loss(final, tuple(s[0] for s in after))

    def loss(final, hiddens):
        return sum(jnp.sum(jnp.sin(k + leaf)) for k, leaf in enumerate(jax.tree.leaves((final, hiddens))))

    arguments = (xs, weights, biases, states)

    @jax.jit
    def gradients(function_arguments):
        both_gradients = [jax.grad(f, (0, 1, 2, 3)) for f in (by_hand, plain)]
        # The Hessian's product runs forward over the backward pass.
        return [jax.jvp(g, function_arguments, function_arguments) for g in both_gradients]

    ours, expected = gradients(arguments)
    assert_close(ours, expected)


def test_jit_equals_eager_and_time_major_is_the_same():
    x, lengths = jnp.asarray(draw(1, BATCH, STEPS, WIDTH)), jnp.asarray(UNSORTED)
    for kind in ("LSTM", "GRU"):
        _, ours, _ = deep(kind)
        eager = leaves(*ours(x, lengths=lengths))
        jitted = leaves(*nnx.jit(lambda m, x, n: m(x, lengths=n))(ours, x, lengths))
        other = getattr(nn, kind)(WIDTH, HIDDEN, **DEEP, rngs=nnx.Rngs(1))
        load_state_dict(other, to_state_dict(ours))
        outputs, final = other(x.swapaxes(0, 1), lengths=lengths)
        assert_close(eager, jitted)
        assert_close(leaves(outputs.swapaxes(0, 1), final), eager)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_cut_in_two_is_one(kind):
    _, _, ours = build(kind, num_layers=2)
    x = jnp.asarray(draw(1, BATCH, STEPS, WIDTH))
    first, carried = ours(x[:, :2])
    second, final = ours(x[:, 2:], carried)
    assert_close(leaves(jnp.concatenate([first, second], 1), final), leaves(*ours(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_what_cudnn_is_given(bias, monkeypatch, caplog):
    """JAX's reference in the kernel's place: the packed weights mean what the layer's mean, gradients too."""
    from jax.experimental import rnn as experimental

    layer = nn.LSTM(WIDTH, HIDDEN, **DEEP, bias=bias, rngs=nnx.Rngs(0))
    graph, params, rest = state.split(layer)
    params = {k: v.astype(jnp.float32) for k, v in params.items()}
    x = jnp.asarray(draw(1, STEPS, BATCH, WIDTH), jnp.float32)
    states = tuple(jnp.asarray(draw(k, 4, BATCH, HIDDEN), jnp.float32) for k in (2, 3))
    used = []

    def kernel(x, h, c, weights, lengths, *sizes):
        used.append(sizes)
        *shape, dropout, both = sizes
        parts = experimental.unpack_lstm_weights(weights, *shape, both)
        return experimental.lstm_ref(x, h, c, *parts, lengths, *shape, dropout, both)

    def loss(params):
        y, (h, c) = state.merge(graph, params, rest)(x, states)
        return (y**2).sum() + jnp.sin(h).sum() + jnp.cos(c).sum()

    expected = jax.jit(jax.value_and_grad(loss))(params)
    monkeypatch.setattr(experimental, "lstm", kernel)
    monkeypatch.setattr(lstm_cudnn, "_reported", set())
    monkeypatch.setitem(switches._ENABLED, "lstm_cudnn", True)
    state.merge(graph, {k: v.astype(float) for k, v in params.items()}, rest)(x.astype(float))
    assert "not by cuDNN, but by XLA: no CUDA GPU; not float32" in caplog.text
    monkeypatch.setattr(lstm_cudnn, "_has_cuda", lambda: True)
    narrow = state.merge(graph, params, rest)
    narrow(x, lengths=jnp.full(BATCH, 2))
    assert not used
    found = jax.jit(jax.value_and_grad(loss))(params)
    assert used == [(WIDTH, HIDDEN, 2, 0.0, True)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_both_biases_train_as_in_torch(kind):
    theirs, _, ours = build(kind)
    graph, params, rest = state.split(ours)
    x, target = draw(1, BATCH, STEPS, WIDTH), draw(2, BATCH, STEPS, HIDDEN)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)

    @jax.jit
    def step(params):
        def loss(p):
            return ((state.merge(graph, p, rest)(jnp.asarray(x))[0] - target) ** 2).mean()

        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))

    for _ in range(10):
        optimizer.zero_grad()
        ((theirs(torch.tensor(x))[0] - torch.tensor(target)) ** 2).mean().backward()
        optimizer.step()
        params = step(params)
    assert_close(params, dict(theirs.named_parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers(kind):
    _, twin, ours = build(kind, **DEEP, dropout=0.5)
    x, lengths = draw(1, BATCH, STEPS, WIDTH), torch.tensor(UNSORTED)
    twin.train()
    mask = np.random.default_rng(3).random((BATCH, STEPS, 2 * HIDDEN)) < 0.5
    twin.drop.forward = lambda y: y * torch.tensor(mask) * 2
    expected = leaves(*twin(torch.tensor(x), lengths=lengths))
    assert nn.label_dropouts(ours) == ["drop"]
    ours.train()
    with nn.inject_masks({"drop": [jnp.asarray(mask)]}):
        outputs = leaves(*ours(jnp.asarray(x), lengths=jnp.asarray(UNSORTED)))
    assert_close(outputs, expected)
    ours.eval()
    twin.eval()  # torch's fused path
    still = leaves(*twin(torch.tensor(x), lengths=lengths))
    assert not torch.allclose(still[0], expected[0])
    assert_close(leaves(*ours(jnp.asarray(x), lengths=jnp.asarray(UNSORTED))), still)


def test_initialiser_is_torchs():
    weights = to_state_dict(nn.GRU(30, 64, rngs=nnx.Rngs(0)))
    assert set(weights) == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    for value in weights.values():
        assert np.abs(value).max() <= 1 / 8
        assert np.abs(value).max() > 0.97 / 8
        assert abs(value.std() * 8 * np.sqrt(3) - 1) < 0.1
    assert len({value.ravel()[0] for value in weights.values()}) == 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_dtype_is_kept(kind, dtype):
    graph, params, rest = state.split(getattr(nn, kind)(WIDTH, HIDDEN, batch_first=True, rngs=nnx.Rngs(0)))

    def loss(params):
        x = jnp.ones((2, STEPS, WIDTH), dtype)
        outputs, _ = state.merge(graph, params, rest)(x, lengths=jnp.array([2, 1]))
        assert outputs.dtype == dtype
        return outputs.sum()

    gradients = jax.eval_shape(jax.grad(loss), {k: p.astype(dtype) for k, p in params.items()})
    assert {g.dtype for g in gradients.values()} == {jnp.dtype(dtype)}


def test_errors():
    layer = nn.LSTM(WIDTH, HIDDEN, batch_first=True, rngs=nnx.Rngs(0))
    x = jnp.zeros((2, STEPS, WIDTH))
    with pytest.raises(DataError, match="length 0 of row 1"):
        layer(x, lengths=jnp.array([1, 0]))
    with pytest.raises(DataError, match="length 7 of row 0"):
        layer(x, lengths=jnp.array([7, 1]))
    with pytest.raises(DataError, match="lengths has shape"):
        layer(x, lengths=jnp.array([1, 1, 1]))
    with pytest.raises(DataError, match="2 features, input_size is 3"):
        layer(x[..., :2])
    with pytest.raises(DataError, match="initial state has shape"):
        layer(x, (jnp.zeros((1, 3, HIDDEN)),) * 2)
    with pytest.raises(DataError, match="lengths has shape"):
        layer(x[0], lengths=jnp.array([1]))
    with pytest.raises(DataError, match="3 axes, or 2 without a batch"):
        layer(x[0, 0])
    with pytest.raises(DataError, match="input or hx is float32, the weights are float64"):
        layer(x.astype(jnp.float32))
    with pytest.raises(UsageError, match="proj_size must be in"):
        nn.LSTM(WIDTH, HIDDEN, proj_size=HIDDEN, rngs=nnx.Rngs(0))
    with pytest.warns(UserWarning, match=r"dropout 0\.5"):
        nn.GRU(WIDTH, HIDDEN, dropout=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="positive"):
        nn.GRU(WIDTH, 0, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match="did you mean 'tanh'"):
        nn.RNN(WIDTH, HIDDEN, nonlinearity="tan", rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match="hidden_size is 5"):
        nn.DotProductAttention(5, rngs=nnx.Rngs(0))(x)


def by_definition(kind, weights, hidden, valid):
    """Luong's formulas, one pair at a time; hidden (T, H)."""
    context = np.zeros_like(hidden)
    for t in np.flatnonzero(valid):
        scores = []
        for s in np.flatnonzero(valid):
            match kind:
                case "Dot":
                    scores.append(hidden[t] @ hidden[s])
                case "General":
                    scores.append(hidden[t] @ (weights["linear.weight"] @ hidden[s]))
                case "Concat":
                    joined = np.concatenate([hidden[t], hidden[s]])
                    scores.append((weights["v.weight"] @ np.tanh(weights["linear.weight"] @ joined))[0])
        share = np.exp(scores) / np.exp(scores).sum()
        context[t] = share @ hidden[valid]
    return context


def luong_layers(kind):
    """The attention of a kind in torchref and in jaxarch, and its weights."""
    name = "DotProductAttention" if kind == "Dot" else f"{kind}Attention"
    twin = getattr(reference, name)(HIDDEN).double()
    ours = getattr(nn, name)(HIDDEN, rngs=nnx.Rngs(0))
    weights = {k: v.numpy() for k, v in twin.state_dict().items()}
    load_state_dict(ours, weights)
    return twin, ours, weights


def luong_call(layer, hidden, mask, lengths):
    context, shares = layer(hidden, mask, lengths, return_weights=True)
    return {"context": context, "shares": shares}


@pytest.mark.parametrize("kind", ["Dot", "General", "Concat"])
def test_luong_attention(kind):
    twin, ours, weights = luong_layers(kind)
    hidden = draw(1, BATCH, STEPS, HIDDEN)
    mask = np.random.default_rng(3).random((BATCH, STEPS)) < 0.7
    mask[2, 0] = False  # of length 1: no valid step is left
    valid = mask & (np.arange(STEPS) < UNSORTED[:, None])
    inputs = {"hidden": hidden, "mask": mask, "lengths": UNSORTED}
    expected, cotangents = torch_vjp(twin, inputs, call=luong_call)
    run = jax_vjp(ours, luong_call)
    actual = run(inputs, cotangents)
    assert_same_vjp(actual, expected)
    context, shares = actual.outputs["context"], actual.outputs["shares"]
    for row in range(BATCH):
        assert_close(context[row], by_definition(kind, weights, hidden[row], valid[row]))
    assert_close(shares.sum(-1), valid.astype(float))

    # Values at masked steps influence nothing, bit for bit.
    spoiled = run({**inputs, "hidden": np.where(valid[..., None], hidden, np.nan)}, cotangents)
    jax.tree.map(np.testing.assert_array_equal, spoiled, actual)

    everywhere = np.ones(STEPS, bool)
    assert_close(ours(jnp.asarray(hidden))[0], by_definition(kind, weights, hidden[0], everywhere))
    assert_close(ours(jnp.asarray(hidden)), twin(torch.tensor(hidden)))
