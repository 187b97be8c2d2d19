"""The suite can fail: one mutant for each kind of pitfall, and each turns the comparison red."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from comparison import JaxCall, TorchCall
from jaxarch import nn
from jaxarch.errors import JaxarchError
from jaxarch.nn import attention as attention_module
from jaxarch.nn import conv_transpose, linear, pool, position, rnn
from jaxarch.nn import norm as norm_module
from jaxarch.optim import clip_by_global_norm
from jaxarch.optim.optimizer import with_standard_promotion
from jaxarch.optim.transformation import OptimizerState
from jaxarch.parity import catalog_pair, check, check_pair, jax_side
from torchref import nn as reference

IDS = np.array([[0, 1, 2, 2], [3, 2, 1, 4]])


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape)


def sequence(layer, x, lengths):
    y, final = layer(x, lengths=lengths)
    return {"y": y, "final": final}


def unnamed(layer, x):
    return layer(x)


def pair_of(
    name, args=(), kwargs=None, *, inputs, kinds=None, outputs="features", call=None, modes=("eval",)
):
    """A function that compares one layer of torchref with ours, built anew so that a mutant takes effect."""

    def settings(package):
        return kwargs(package) if callable(kwargs) else kwargs or {}

    def compare():
        torch.manual_seed(0)
        theirs = getattr(reference, name)(*args, **settings(reference))
        cls = getattr(nn, name)
        with_rngs = {"rngs": nnx.Rngs(0)}
        try:
            ours = cls(*args, **settings(nn), **with_rngs)
        except TypeError:
            ours = cls(*args, **settings(nn))
        used = call or unnamed
        if name in ("LSTM", "GRU"):
            used = sequence
        calls = TorchCall(theirs, used), JaxCall(ours, used)
        return check(*calls, inputs, kinds=kinds, outputs=outputs, modes=modes)

    return compare


def case_of(name, variant, modes=("eval",)):
    return lambda: check_pair(catalog_pair(name, variant), name, variant, modes)


IMAGE = {"inputs": {"x": drawn(3, 4, 7, 6)}, "kinds": {"x": "image"}, "outputs": "image"}
ROWS = {"inputs": {"x": drawn(4, 6)}}
SEQUENCE = {"inputs": {"x": drawn(3, 5, 4), "lengths": np.array([2, 5, 1])}}
TEXT = {"inputs": {"query": drawn(2, 5, 8), "mask": np.arange(5) < np.array([[3], [5]])}}


def attend(layer, query, mask):
    return layer(query, mask=mask)


def with_config(**fields):
    return lambda package: {"config": package.AttentionConfig(**fields)}


PAIRS = {
    "gelu": pair_of("Activation", ("gelu",), **ROWS),
    "leaky": pair_of("Activation", ("leaky_relu",), inputs={"x": np.array([[-1.0, 0.0, 2.0]])}),
    "relu": pair_of("Activation", ("relu",), inputs={"x": np.array([[-1.0, 0.0, 2.0]])}),
    "linear": pair_of("Linear", (6, 6), **ROWS),
    "layer norm": pair_of("LayerNorm", (6,), inputs={"x": 1e-2 * drawn(4, 6)}),
    "group norm": pair_of("GroupNorm", (2, 4), **IMAGE),
    "batch norm": pair_of("BatchNorm2d", (4,), **IMAGE, modes=("train",)),
    "conv": pair_of("Conv2d", (4, 6, 3, 2, 1), **IMAGE),
    "conv groups": pair_of("Conv2d", (4, 4, 3), {"groups": 4, "dilation": 2, "padding": 2}, **IMAGE),
    "up": pair_of("ConvTranspose2d", (4, 6, 3, 2, 1, 1), **IMAGE),
    "flatten": pair_of("Flatten", inputs=IMAGE["inputs"], kinds=IMAGE["kinds"]),
    "max": pair_of(
        "MaxPool2d", (3, 2, 1), inputs={"x": -5 + drawn(2, 3, 6, 6)}, kinds={"x": "image"}, outputs="image"
    ),
    "avg": pair_of("AvgPool2d", (3, 2, 1), **IMAGE),
    "adaptive": pair_of("AdaptiveAvgPool2d", ((3, 4),), **IMAGE),
    "dropout": pair_of("Dropout", (0.4,), **ROWS, modes=("train",)),
    "embedding": pair_of("Embedding", (5, 3, 2), inputs={"x": IDS}),
    "se": pair_of("SEBlock", (4, 2), **IMAGE),
    "residual": pair_of("ResidualBlock", (4, 8, 2), **IMAGE),
    "lstm": pair_of("LSTM", (4, 3), {"batch_first": True, "bidirectional": True}, **SEQUENCE),
    "gru": pair_of("GRU", (4, 3), {"batch_first": True, "bidirectional": True}, **SEQUENCE),
    "attention": pair_of("MultiHeadAttention", (8, 2), with_config(causal=True), **TEXT, call=attend),
    "rope": pair_of("MultiHeadAttention", (8, 2), with_config(position="rope"), **TEXT, call=attend),
    "relative": pair_of("MultiHeadAttention", (8, 2, 0.0, "relative", 2), **TEXT, call=attend),
    "block": pair_of("TransformerBlock", (8, 2, 16), inputs={"x": drawn(2, 5, 8)}),
    "sinusoid": pair_of("PositionalEncoding", (8, 16), inputs={"x": drawn(2, 5, 8)}),
    "language model": case_of("advanced_transformer", "tiny"),
    "mlp": case_of("mlp", "tiny_plain"),
}


@functools.cache
def green(pair):
    return PAIRS[pair]()


@pytest.mark.parametrize("pair", PAIRS)
def test_unmutated_pairs_agree(pair):
    assert green(pair).ok, green(pair).detail


def wrapped(target, name, change):
    """Replace target.name by change(the original)."""

    @contextlib.contextmanager
    def mutate(monkeypatch):
        monkeypatch.setattr(target, name, change(getattr(target, name)))
        yield

    return mutate


def entry(table, key, value):
    @contextlib.contextmanager
    def mutate(monkeypatch):
        monkeypatch.setitem(table, key, value)
        yield

    return mutate


def method(cls, name, new):
    return wrapped(cls, name, lambda original: lambda self, *a, **k: new(original, self, *a, **k))


def with_attribute(cls, **attributes):
    """A layer whose attributes are set otherwise after construction."""

    def new(original, self, *args, **kwargs):
        original(self, *args, **kwargs)
        for key, value in attributes.items():
            setattr(self, key, value)

    return method(cls, "__init__", new)


def gates(order):
    """The cell with its gates taken in another order."""

    def change(original):
        def forward(x, product, bias, state):
            turn = lambda v: jnp.concatenate([jnp.split(v, 4, -1)[i] for i in order], -1)  # noqa: E731
            return original.forward(turn(x), turn(product), bias, state)

        return original._replace(forward=forward)

    return change


def reset_before(original):
    """GRU with the reset gate on the state and not on the product."""

    def forward(x, product, bias, state):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3, -1), jnp.split(product, 3, -1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n + (0 if bias is None else bias))
        return ((1 - z) * n + z * state[0],), (r, z, n, h_n)

    return original._replace(forward=forward)


def without_last(original):
    """Recurrence that forgets the lengths: the state is updated by the padding."""
    return lambda cell, xs, w, b, s, masks, p: original(cell, xs, w, b, s, (None,) * len(masks), p)


def with_slots(rule):
    """optax's Adam with its moments where the harness finds those of ours."""
    rule = with_standard_promotion(rule)
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)  # noqa: E731

    def state(inner):
        (adam,) = [x for x in jax.tree.leaves(inner, is_leaf=is_adam) if is_adam(x)]
        return OptimizerState(adam.count, {}, {"exp_avg": adam.mu, "exp_avg_sq": adam.nu}), inner

    def update(grads, states, params):
        updates, inner = rule.update(grads, states[1], params)
        return updates, state(inner)

    return optax.GradientTransformation(lambda params: state(rule.init(params)), update)


def adam_with(**changed):
    def change(original):
        def make(kind="adamw", *, learning_rate, weight_decay=0.0, max_grad_norm=0.0):
            given = {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm, **changed}
            if "eps_root" in changed:
                return with_slots(
                    optax.adamw(learning_rate, eps=0.0, eps_root=1e-8, weight_decay=weight_decay)
                )
            return original(kind, learning_rate=learning_rate, **given)

        return make

    return wrapped(jax_side, "create_optimizer", change)


def scaled_scores(original):
    return lambda q, k, v, *a, **kw: original(q * 1.01, k, v, *a, **kw)


def biased_memory(original, self, mean, var, n):
    original(self, mean, var * ((n - 1) / n), n)


MUTANTS = {
    "tanh gelu": ("gelu", entry(nn.ACTIVATIONS, "gelu", nn.ACTIVATIONS["gelu_tanh"])),
    "leaky slope": ("leaky", entry(nn.ACTIVATIONS, "leaky_relu", lambda x: jnp.where(x > 0, x, 0.02 * x))),
    "leaky kink": ("leaky", entry(nn.ACTIVATIONS, "leaky_relu", lambda x: jnp.where(x >= 0, x, 0.01 * x))),
    "relu kink": ("relu", entry(nn.ACTIVATIONS, "relu", lambda x: jnp.maximum(x, 0))),
    "square weight not transposed": ("linear", entry(linear.Linear.LAYOUT, "weight", None)),
    "layer norm eps": ("layer norm", with_attribute(nn.LayerNorm, eps=1e-6)),
    "group norm groups": ("group norm", with_attribute(nn.GroupNorm, num_groups=4)),
    "norm of another size": (
        "layer norm",
        wrapped(norm_module, "standardize", lambda f: lambda x, axes, eps: f(x, axes, eps) * 0.999),
    ),
    "batch norm eps": ("batch norm", with_attribute(nn.BatchNorm2d, eps=1e-3)),
    "batch norm momentum": ("batch norm", with_attribute(nn.BatchNorm2d, momentum=0.9)),
    "biased running variance": ("batch norm", method(norm_module.BatchNorm, "_remember", biased_memory)),
    "batch norm in eval statistics": ("batch norm", with_attribute(nn.BatchNorm2d, frozen=True)),
    "SAME padding": ("conv", with_attribute(nn.Conv2d, padding=((0, 1), (0, 1)))),
    "no dilation": ("conv groups", with_attribute(nn.Conv2d, dilation=(1, 1), padding=((1, 1), (1, 1)))),
    "conv kernel transposed": ("conv groups", entry(nn.Conv2d.LAYOUT, "weight", (3, 2, 1, 0))),
    "transposed kernel not flipped": (
        "up",
        wrapped(conv_transpose.jnp, "flip", lambda f: lambda x, axes=None: x),
    ),
    "output padding on the left": (
        "up",
        wrapped(
            conv_transpose.jax.lax,
            "conv_general_dilated",
            lambda f: lambda x, w, s, pads, **k: f(x, w, s, [(b, a) for a, b in pads], **k),
        ),
    ),
    "flatten channels last": (
        "flatten",
        method(nn.Flatten, "__call__", lambda f, self, x: x.reshape(x.shape[0], -1)),
    ),
    "max pool pads zeros": (
        "max",
        method(pool._MaxPool, "_pool", lambda f, self, x: jnp.maximum(f(self, x), -4.9)),
    ),
    "padding not counted": ("avg", with_attribute(nn.AvgPool2d, count_include_pad=False)),
    "even bins": (
        "adaptive",
        method(nn.AdaptiveAvgPool2d, "_pool", lambda f, self, x: jax.image.resize(x, (3, 3, 4, 4), "linear")),
    ),
    "dropout unscaled": (
        "dropout",
        method(nn.Dropout, "__call__", lambda f, self, x: f(self, x) * (1 - self.p)),
    ),
    "padding row learns": ("embedding", with_attribute(nn.Embedding, padding_idx=None)),
    "gate and shortcut": (
        "se",
        method(nn.SEBlock, "__call__", lambda f, self, x: x + f(self, x)),
    ),
    "no shortcut": (
        "residual",
        method(
            nn.ResidualBlock,
            "__call__",
            lambda f, self, x: self.activation(self.bn2(self.conv2(self.conv1(x)))),
        ),
    ),
    "lstm gates swapped": ("lstm", wrapped(rnn, "LSTM_CELL", gates((0, 1, 3, 2)))),
    "lstm lengths ignored": ("lstm", wrapped(rnn, "recur", without_last)),
    "lstm one bias": (
        "lstm",
        method(
            nn.LSTM, "_biases", lambda f, self, layer, suffix: (self._leaf("bias_ih", layer, suffix), None)
        ),
    ),
    "gru reset before the product": ("gru", wrapped(rnn, "GRU_CELL", reset_before)),
    "gru lengths ignored": ("gru", wrapped(rnn, "recur", without_last)),
    "attention scale": ("attention", wrapped(attention_module, "exact_attention", scaled_scores)),
    "mask reversed": (
        "attention",
        wrapped(attention_module, "expand_mask", lambda f: lambda m, s: None if m is None else ~f(m, s)),
    ),
    "not causal": ("attention", with_attribute(nn.MultiHeadAttention, causal=False)),
    "softmax over queries": (
        "attention",
        wrapped(attention_module.jax.nn, "softmax", lambda f: lambda x, axis=-1: f(x, -2)),
    ),
    "rope halves": ("rope", with_attribute(position.RotaryEmbedding, layout="half")),
    "relative distance reversed": (
        "relative",
        method(nn.MultiHeadAttention, "_exact", lambda f, self, q, k, v, m, s, d: f(self, q, k, v, m, s, -d)),
    ),
    "pre-norm": ("block", with_attribute(nn.TransformerBlock, norm_first=True)),
    "positions subtracted": (
        "sinusoid",
        method(nn.PositionalEncoding, "__call__", lambda f, self, x: 2 * x - f(self, x)),
    ),
    "labels not shifted": (
        "language model",
        wrapped(jnp, "take_along_axis", lambda f: lambda x, i, axis: f(x, jnp.roll(i, 1, 1), axis)),
    ),
    "everything decays": (
        "mlp",
        wrapped(jax_side, "create_optimizer", lambda f: lambda *a, **k: _decay_all(f, *a, **k)),
    ),
    "no decay": ("mlp", adam_with(weight_decay=0.0)),
    "no clipping": ("mlp", adam_with(max_grad_norm=0.0)),
    "Adam's eps inside the root": ("mlp", adam_with(eps_root=True)),
    "no warm-up": (
        "mlp",
        wrapped(jax_side, "create_schedule", lambda f: lambda *a: f(a[0], a[1], 0, a[3])),
    ),
}


def _decay_all(original, *args, **kwargs):
    rule = optax.adamw(kwargs["learning_rate"], weight_decay=kwargs["weight_decay"])
    return with_slots(optax.chain(clip_by_global_norm(kwargs["max_grad_norm"]), rule))


def test_there_are_enough():
    assert len(MUTANTS) >= 25
    assert {pair for pair, _ in MUTANTS.values()} == set(PAIRS)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_caught(mutant, monkeypatch):
    pair, mutate = MUTANTS[mutant]
    jax.clear_caches()
    refused = None
    with mutate(monkeypatch):
        try:
            result = PAIRS[pair]()
        except JaxarchError as e:
            refused = e
        finally:
            monkeypatch.undo()
            jax.clear_caches()
    if refused is not None:
        assert "shape" in str(refused)
        return
    assert not result.ok, f"{mutant}: survived with {result.minimum_bound:.1e}"
    assert result.detail
