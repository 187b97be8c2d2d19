"""The sequence architectures: padded = unpadded, cut in two = whole, searched = recomputed, solved = solved."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from comparison import arrays, assert_same_vjp, error, jax_vjp, torch_vjp
from jaxarch import catalog, nn
from jaxarch.convert.layout import layout
from jaxarch.errors import DataError, UsageError
from jaxarch.models import hierarchical_attention_network as han
from jaxarch.parity import Pair, catalog_pair, check
from jaxarch.parity.pair import channels_first
from jaxarch.state import flat
from torchref import nn as rnn

few = settings(max_examples=20, deadline=None)
RNG = np.random.default_rng(0)


@functools.cache
def pair(name, variant="tiny"):
    """Both models in eval mode, with the same weights."""
    found = catalog_pair(name, variant)
    found.reset(False)
    return found


def run(model, **static):
    """The model's call as one jitted function of its inputs, which may be positional."""
    graph, state = nnx.split(model)
    return jax.jit(lambda *args, **kwargs: nnx.merge(graph, state)(*args, **static, **kwargs))


@functools.cache
def teacher_forced():
    """The seq2seq model's call, compiled once for the tests that share it."""
    return run(pair("seq2seq_rnn").model)


def error_of(pair):
    """The largest error of the outputs on the page's inputs."""
    ours = arrays(run(pair.model)(**pair.jax_inputs()))
    ours = {k: channels_first(v, pair.outputs) for k, v in ours.items()}
    return error(ours, arrays(pair.torch(**pair.torch_inputs())))


def close(ours, theirs, bound=1e-13):
    assert error(ours, theirs) <= bound


RECURRENT_KEYS = {
    "simple_rnn": (
        {"input_size": 5, "hidden_size": 6, "num_classes": 3},
        "rnn.weight_ih_l0 [6, 5], rnn.weight_hh_l0 [6, 6], rnn.bias_ih_l0 [6], rnn.bias_hh_l0 [6], "
        "fc.weight [3, 6], fc.bias [3]",
    ),
    "bi_lstm": (
        {"vocab_size": 20, "embed_size": 5, "hidden_size": 6},
        "embed.weight [20, 5], lstm.weight_ih_l0 [24, 5], lstm.weight_hh_l0 [24, 6], lstm.bias_ih_l0 [24], "
        "lstm.bias_hh_l0 [24], lstm.weight_ih_l0_reverse [24, 5], lstm.weight_hh_l0_reverse [24, 6], "
        "lstm.bias_ih_l0_reverse [24], lstm.bias_hh_l0_reverse [24], fc.weight [20, 12], fc.bias [20]",
    ),
    "gru_forecaster": (
        {"input_size": 5, "hidden_size": 6, "pred_steps": 3},
        "gru.weight_ih_l0 [18, 5], gru.weight_hh_l0 [18, 6], gru.bias_ih_l0 [18], gru.bias_hh_l0 [18], "
        "linear.weight [3, 6], linear.bias [3]",
    ),
    "attn_rnn": (
        {"input_size": 5, "hidden_size": 6},
        "rnn.weight_ih_l0 [18, 5], rnn.weight_hh_l0 [18, 6], rnn.bias_ih_l0 [18], rnn.bias_hh_l0 [18], "
        "attn.weight [1, 6], attn.bias [1]",
    ),
}


@pytest.mark.parametrize("arch", RECURRENT_KEYS)
def test_names_and_shapes(arch):
    arguments, keys = RECURRENT_KEYS[arch]
    theirs = catalog.create_model(arch, package="torchref", **arguments).state_dict()
    ours = nnx.eval_shape(lambda: catalog.create_model(arch, **arguments))
    shapes = {k: v.shape for k, v in flat(nnx.state(ours, nnx.Param)).items()}
    # A permutation of two axes is its own inverse.
    back = {r.torch: [shapes[r.path][i] for i in r.perm or range(len(shapes[r.path]))] for r in layout(ours)}
    for found in ({k: list(v.shape) for k, v in theirs.items()}, back):
        assert {f"{k} {v}" for k, v in found.items()} == set(keys.replace("], ", "]; ").split("; "))


BLOCKS = {
    "all": (
        "Conv1DBlock",
        (4, 6, 3, 2, 3, 2, 2),
        {"bias": False, "activation": "gelu", "dropout": 0.3, "batch_norm": True},
    ),
    "same": ("Conv1DBlock", (4, 6, 4), {"padding": "same", "dropout": 0.0, "batch_norm": False}),
    "same_odd": (
        "Conv1DBlock",
        (4, 4, 3),
        {"padding": "same", "dilation": 2, "groups": 4, "activation": "silu"},
    ),
    "valid": ("Conv1DBlock", (4, 2, 2), {"padding": "valid", "activation": "identity", "dropout": 0.5}),
    "parallel": ("ParallelConv1d", (4, 2, [1, 6]), {"activation": "tanh"}),
    "residual": ("ResidualBlock1d", (4, 4, 0.2), {}),
}


def test_blocks():
    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(getattr(rnn, n)(*a, **k) for n, a, k in BLOCKS.values())

        def forward(self, x):
            return tuple(block(x) for block in self.blocks)

    class Ours(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.blocks = nn.ModuleList(getattr(nn, n)(*a, **k, rngs=rngs) for n, a, k in BLOCKS.values())

        def __call__(self, x):
            return tuple(block(x) for block in self.blocks)

    inputs = {"x": RNG.normal(size=(3, 4, 7))}
    theirs, ours = Theirs(), Ours()
    result = check(theirs, ours, inputs, kinds={"x": "signal"}, outputs="signal", modes=("train",))
    assert result.ok, result.detail
    # A bias before a batch norm has no gradient.
    zeros = {f"blocks.{b}.conv.bias" for b in ("2", "3", "4.convs.0", "4.convs.1")}
    assert set(result.structural_zeros) == zeros
    buffers = set(dict(theirs.named_buffers())) & {r.torch for r in layout(ours) if not r.trainable}
    assert len(buffers) >= 8


def test_shorter_than_a_kernel():
    found = pair("cnn_feature_extractor", "tiny_avg")
    for steps in (1, 2):
        x = RNG.normal(size=(2, steps, 5))
        close(found.model(jnp.asarray(x)), found.torch(torch.from_numpy(x)).detach().numpy())
    block = nn.Conv1DBlock(2, 3, 4, padding=1, rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match="3 padded steps are fewer than the 4"):
        block(jnp.ones((1, 1, 2)))
    with pytest.raises(UsageError, match="'same' needs stride 1"):
        nn.Conv1DBlock(2, 3, 4, 2, "same", rngs=nnx.Rngs(0))
    for package in ("jaxarch", "torchref"):
        with pytest.raises((UsageError, ValueError), match=r"pool_type.*max"):
            catalog.create_model("cnn_feature_extractor", "tiny", package=package, pool_type="min")


SEQUENCES = {
    "cnn_lstm_hybrid": "logits",
    "bi_lstm": "steps",
    "attn_rnn": "features",
    "gru_forecaster": "features",
}


@pytest.mark.parametrize("model", SEQUENCES)
def test_padded_is_unpadded(model):
    found, steps, pad = pair(model), 3, 2
    call, floats = run(found.model), SEQUENCES[model] == "features"

    @few
    @given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def check_one(seed, lengths):
        rng = np.random.default_rng(seed)

        def draw(t):
            return rng.normal(size=(2, t, 5)) if floats else rng.integers(0, 20, (2, t))

        x, lengths = draw(steps), np.array(lengths)
        padded, other = (np.concatenate([x, draw(pad)], 1) for _ in range(2))
        for row, length in enumerate(lengths):
            other[row, length:] = draw(steps + pad)[row, length:]
        outputs = [call(jnp.asarray(v), lengths=jnp.asarray(lengths)) for v in (x, padded, other)]
        if SEQUENCES[model] == "steps":
            outputs = [(y[:, :steps], state) for y, state in outputs]
        # Values past the length change no bit; other shapes may round otherwise.
        for a, b in zip(jax.tree.leaves(outputs[1]), jax.tree.leaves(outputs[2]), strict=True):
            np.testing.assert_array_equal(a, b)
        close(outputs[0], outputs[1])

    check_one()
    first = next(iter(found.inputs))
    empty = np.array([1, 0, 2, 2])[: len(found.inputs[first])]
    with pytest.raises(DataError, match="length 0 of row 1"):
        found.model(found.jax_inputs()[first], lengths=jnp.asarray(empty))
    with pytest.raises(RuntimeError, match="greater than 0"):
        found.torch(found.torch_inputs()[first], lengths=torch.from_numpy(empty))


def test_documents_padded_anywhere():
    found = pair("hierarchical_attention_network")
    call = run(found.model, return_attention=True)

    @few
    @given(st.data())
    def check_one(data):
        words = st.lists(st.integers(1, 2), min_size=0, max_size=2)
        text = data.draw(st.lists(words, min_size=0, max_size=2))
        sentences = [s for s in text if s]
        small, large = np.zeros((1, 2, 2), int), np.zeros((1, 4, 5), int)
        rows = sorted(data.draw(st.permutations(range(4)))[: len(sentences)])
        places = [sorted(data.draw(st.permutations(range(5)))[: len(s)]) for s in sentences]
        for i, sentence in enumerate(sentences):
            small[0, i, : len(sentence)] = sentence
            large[0, rows[i], places[i]] = sentence
        (a, (_, _)), (b, (by_word, by_sentence)) = call(jnp.asarray(small)), call(jnp.asarray(large))
        close(a, b)
        with torch.no_grad():
            theirs = found.torch(torch.from_numpy(large), return_attention=True)
        close((b, (by_word, by_sentence)), jax.tree.map(lambda x: x.numpy(), theirs))
        # The weights are at the positions of the words.
        np.testing.assert_array_equal(np.asarray(by_word) > 0, large > 0)
        np.testing.assert_array_equal(np.asarray(by_sentence) > 0, (large > 0).any(-1))
        if sentences:
            np.testing.assert_allclose(by_sentence.sum(), 1)
        else:
            np.testing.assert_array_equal(b[0], found.model.fc.bias[...])

    check_one()
    with pytest.raises(DataError, match="6 sentences are more than num_sentences 5"):
        found.model(jnp.ones((1, 6, 2), int))


def test_a_mutant_without_the_mask_is_found(monkeypatch):
    found = pair("hierarchical_attention_network")
    own = han.ContextAttention.__call__
    monkeypatch.setattr(han.ContextAttention, "__call__", lambda s, h, mask: own(s, h, jnp.ones_like(mask)))
    assert error_of(found) > 1e-3


def test_cut_in_two():
    rngs = nnx.Rngs(0)
    layers = nn.ModuleList(layer(3, 4, 2, batch_first=True, rngs=rngs) for layer in (nn.RNN, nn.GRU, nn.LSTM))
    graph, state = nnx.split(layers)

    @jax.jit
    def both(x):
        found = []
        for layer in nnx.merge(graph, state):
            first, carried = layer(x[:, :2])
            second, last = layer(x[:, 2:], carried)
            found.append(((jnp.concatenate([first, second], 1), last), layer(x)))
        return found

    for cut, whole in both(jnp.asarray(RNG.normal(size=(2, 6, 3)))):
        close(cut, whole)


def test_bi_lstm_carries_its_state():
    found = pair("bi_lstm")
    ids = RNG.integers(0, 20, (2, 6))
    h, c = RNG.normal(size=(2, 2, 2, 6))
    call = run(found.model)
    logits, final = call(jnp.asarray(ids), (jnp.asarray(h), jnp.asarray(c)))
    with torch.no_grad():
        theirs = found.torch(torch.from_numpy(ids), (torch.from_numpy(h), torch.from_numpy(c)))
    close((logits, final), jax.tree.map(lambda x: x.numpy(), theirs))
    # Forward the state goes from the first half to the second, in reverse from the second to the first.
    whole, halves = call(jnp.asarray(ids))[1], [jnp.asarray(ids[:, :3]), jnp.asarray(ids[:, 3:])]
    for direction, (a, b) in enumerate((halves, halves[::-1])):
        last = call(b, call(a)[1])[1]
        close([s[direction] for s in last], [s[direction] for s in whole])


def test_conv_lstm_carries_its_state():
    found = pair("conv_lstm")
    call, x = run(found.model), found.jax_inputs()["x"]
    whole, final = call(x)
    first, state = call(x[:, :1])
    second, last = call(x[:, 1:], state)
    close((jnp.concatenate([first, second], 1), last), (whole, final))
    with pytest.raises(DataError, match="the model needs"):
        found.model(x, (state[0][..., :1], state[1][..., :1]))


def test_teacher_forcing():
    found = pair("seq2seq_rnn")
    call, inputs = teacher_forced(), found.jax_inputs()
    src, tgt, lengths = inputs["src"], inputs["tgt"], inputs["lengths"]
    forced = call(src, tgt, lengths)
    close(call(src, tgt, lengths, jnp.ones(tgt.shape, bool)), forced)
    for coins in (RNG.random(tgt.shape) < 0.5, np.array([False, True, False, False, True, True, False])):
        mixed = call(src, tgt, lengths, jnp.broadcast_to(coins, tgt.shape))
        theirs = found.torch(*(torch.from_numpy(np.array(v)) for v in (src, tgt, lengths, coins)))
        close(mixed, theirs.detach().numpy())
        assert error(mixed, forced) > 1e-3
    # One row of coins serves the whole batch.
    close(call(src, tgt, lengths, jnp.asarray(coins)), mixed)
    # With its own predictions as targets a model predicts the same under full teacher forcing.
    free = call(src, tgt, lengths, jnp.zeros(tgt.shape, bool))
    guesses = jnp.concatenate([tgt[:, :1], free.argmax(-1)[:, :-1]], 1)
    close(call(src, guesses, lengths), free)


def test_a_mutant_with_teacher_forcing_only_is_found(monkeypatch):
    found = pair("seq2seq_rnn")
    cls, own = type(found.model), type(found.model).__call__
    monkeypatch.setattr(cls, "__call__", lambda s, src, tgt, lengths, coins: own(s, src, tgt, lengths))
    assert error_of(found) > 1e-3


def score(logits, ids, end):
    """The log-probability of each row of ids, up to its end."""
    each = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits, -1)), ids[..., None], -1)[..., 0]
    ended = ids == end
    return (each * (ended.cumsum(1) - ended == 0)).sum(1)


def test_search():
    found, start, end, length = pair("seq2seq_rnn"), 1, 2, 5
    model, inputs = found.model, found.jax_inputs()
    src, lengths = inputs["src"], inputs["lengths"]
    graph, state = nnx.split(model)

    @jax.jit
    def search(src, lengths):
        model = nnx.merge(graph, state)
        wide = model.beam(src, start, end, length, 3, lengths)
        return model.greedy(src, start, end, length, lengths), wide

    greedy, wide = search(src, lengths)
    their_src, their_lengths = (torch.from_numpy(np.array(v)) for v in (src, lengths))
    ids, scores = found.torch.beam(their_src, start, end, length, 3, their_lengths)
    np.testing.assert_array_equal(wide[0], ids.numpy())
    close(wide[1], scores.numpy())
    theirs = found.torch.greedy(their_src, start, end, length, their_lengths)
    np.testing.assert_array_equal(greedy, theirs.numpy())
    # Greedy search is the model without teacher forcing; a score is the log-probability under full teacher forcing.
    tgt = jnp.full((len(src), length), start)
    call = teacher_forced()
    free = np.array(call(src, tgt, lengths, jnp.zeros(tgt.shape, bool)).argmax(-1))
    for row, guess in zip(np.asarray(greedy), free, strict=True):
        stop = list(guess).index(end) + 1 if end in guess else length
        np.testing.assert_array_equal(row, [*guess[:stop], *[end] * (length - stop)])
    logits = call(src, jnp.concatenate([tgt[:, :1], wide[0][:, :-1]], 1), lengths)
    close(wide[1], score(logits, np.asarray(wide[0]), end))


def test_a_beam_of_all_is_exhaustive():
    src, end = jnp.arange(5)[None], 2
    every = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    tgt = np.concatenate([np.zeros((27, 1), int), every[:, :-1]], 1)
    theirs, ours = (
        catalog.create_model("seq2seq_rnn", "tiny_general", package=package, tgt_vocab_size=3)
        for package in ("torchref", "jaxarch")
    )
    found = Pair(theirs, ours, {"src": np.tile(np.arange(5), (27, 1)), "tgt": tgt})
    found.reset(False)
    with torch.no_grad():
        scores = score(found.torch(**found.torch_inputs()).numpy(), every, end)
    graph, state = nnx.split(found.model)
    ids, best = jax.jit(lambda src: nnx.merge(graph, state).beam(src, 0, end, 3, beams=27))(src)
    np.testing.assert_allclose(best[0], scores.max(), rtol=1e-12)
    best = list(every[scores.argmax()])
    stop = best.index(end) + 1 if end in best else 3
    np.testing.assert_array_equal(ids[0], [*best[:stop], *[end] * (3 - stop)])


def test_orders_of_the_fixed_steps():
    """Halving the step divides the error by 2 to the order: dy/dt = y t has the solution y0 exp(t^2 / 2)."""
    from jaxarch.models import neural_ode as ours
    from torchref.models import neural_ode as theirs

    def solve(module, name, n, one):
        y, t, h = one, 0 * one[0, 0], one[0, 0] / n
        for i in range(n):
            y = module.STEPS[name](lambda t, y: y * t, t + i * h, h, y)
        return float(y[0, 0])

    for name, order in {"euler": 1, "midpoint": 2, "rk4": 4}.items():
        errors = [abs(solve(ours, name, n, jnp.ones((1, 1))) - np.exp(0.5)) for n in (16, 32)]
        assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15
        other = solve(theirs, name, 16, torch.ones(1, 1, dtype=torch.float64))
        assert abs(abs(other - np.exp(0.5)) - errors[0]) < 1e-13


@pytest.mark.parametrize("adjoint", [False, True])
def test_adaptive_steps(adjoint):
    options = {
        "dim": 2,
        "steps": 1,
        "hidden_dims": [4],
        "method": "dopri5",
        "rtol": 1e-9,
        "atol": 1e-9,
        "adjoint": adjoint,
    }
    times = np.array([0.0, 0.1, 0.7, 1.0])
    found = Pair(
        catalog.create_model("neural_ode", package="torchref", **options),
        catalog.create_model("neural_ode", **options),
        {"x": RNG.normal(size=(3, 2)), "times": times},
    )
    fine = catalog.create_model("neural_ode", package="torchref", dim=2, hidden_dims=[4], steps=40).double()
    fine.load_state_dict(found.torch.state_dict())
    inputs = {"x": found.inputs["x"]}
    run = jax_vjp(found.model, lambda model, x: model(x, jnp.asarray(times)))
    for model in (found.torch, fine):
        expected, cotangents = torch_vjp(
            model, inputs, call=lambda model, x: model(x, torch.from_numpy(times))
        )
        actual = run(inputs, cotangents)
        close(actual.outputs, expected.outputs, 1e-7)
        assert_same_vjp(actual, expected, 1e-6)


def test_what_the_ode_refuses(monkeypatch):
    for change, match in (
        ({"method": "rk5"}, "rk4"),
        ({"adjoint": True}, "adjoint needs method 'dopri5'"),
        ({"method": "dopri5"}, "steps 2"),
    ):
        for package in ("jaxarch", "torchref"):
            with pytest.raises((UsageError, ValueError), match=match):
                catalog.create_model("neural_ode", "tiny", package=package, **change)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UsageError, match=r"needs diffrax: pip install 'jaxarch\[ode\]'"):
        catalog.create_model("neural_ode", "tiny", method="dopri5", steps=1)(
            jnp.ones((1, 3)), jnp.arange(2.0)
        )
    with pytest.raises(ImportError, match=r"needs torchdiffeq: pip install 'jaxarch\[ode\]'"):
        catalog.create_model("neural_ode", "tiny", package="torchref", method="dopri5", steps=1)(
            torch.ones(1, 3), torch.arange(2.0)
        )
