"""A guide to architectures for text: its calls, in both packages, with the arguments and shapes that it prints.

Sizes are cut; what the classes compute is compared between the packages by their parity cases.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import torchref.models
import torchref.nn
from jaxarch import MODEL_CONFIGS, ModelFactory, models, nn
from jaxarch.errors import UsageError

RNG = np.random.default_rng(0)
TASKS = {
    "sentiment": {"num_classes": 3, "type": "classification"},
    "topic": {"num_classes": 5, "type": "classification"},
    "readability": {"num_classes": 1, "type": "regression"},
    "quality": {"num_classes": 1, "type": "regression"},
}
CNN = {"hidden_dims": [8, 12, 16], "kernel_sizes": [3, 4, 5]}


def numbers(*shape):
    return RNG.normal(size=shape)


def ids(vocabulary, *shape):
    return RNG.integers(0, vocabulary, shape)


TRANSFORMER = {"d_model": 32, "n_heads": 8, "d_ff": 64, "dropout": 0.1}
MASK = np.ones((4, 20, 20), np.float32)
# class: room, constructor, inputs, shape of the output, all channels first as in torch
CALLS = {
    "PositionalEncoding": (
        "nn",
        {"d_model": 32, "max_len": 5000, "dropout": 0.1},
        [numbers(50, 32)],
        (50, 32),
    ),
    "MultiHeadAttentionWithRelativePosition": (
        "nn",
        {"d_model": 32, "n_heads": 8, "dropout": 0.1, "max_relative_position": 32},
        [numbers(4, 20, 32), MASK],
        (4, 20, 32),
    ),
    "TransformerBlock": (
        "nn",
        {**TRANSFORMER, "activation": "gelu", "use_relative_pos": True},
        [numbers(4, 20, 32), MASK],
        (4, 20, 32),
    ),
    "CustomTransformer": (
        "models",
        {
            "vocab_size": 300,
            **TRANSFORMER,
            "n_layers": 2,
            "max_len": 5000,
            "activation": "gelu",
            "use_relative_pos": True,
        },
        [ids(300, 4, 20), MASK],
        (4, 20, 32),
    ),
    "Conv1DBlock": (
        "nn",
        {
            "in_channels": 6,
            "out_channels": 12,
            "kernel_size": 3,
            "activation": "relu",
            "dropout": 0.1,
            "batch_norm": True,
        },
        [numbers(4, 6, 20)],
        (4, 12, 20),
    ),
    "CNNFeatureExtractor": (
        "models",
        {"input_dim": 30, **CNN, "dropout": 0.1, "activation": "relu", "pool_type": "max"},
        [numbers(4, 20, 30)],
        None,
    ),
    "LSTMWithAttention": (
        "models",
        {
            "input_size": 25,
            "hidden_size": 12,
            "num_layers": 2,
            "bidirectional": True,
            "dropout": 0.1,
            "attention_type": "dot",
        },
        [numbers(4, 20, 25), np.array([20, 15, 18, 12])],
        (4, 20, 24),
    ),
    "DotProductAttention": ("nn", {"hidden_size": 12}, [numbers(4, 20, 12)], (4, 20, 12)),
    "GeneralAttention": ("nn", {"hidden_size": 12}, [numbers(4, 20, 12)], (4, 20, 12)),
    "ConcatAttention": ("nn", {"hidden_size": 12}, [numbers(4, 20, 12)], (4, 20, 12)),
    "CNNLSTMHybrid": (
        "models",
        {
            "vocab_size": 150,
            "embed_dim": 30,
            **CNN,
            "lstm_hidden_size": 14,
            "num_classes": 3,
            "dropout": 0.2,
            "bidirectional": True,
        },
        [ids(150, 4, 50), np.array([50, 40, 45, 35])],
        (4, 3),
    ),
    "TransformerCNN": (
        "models",
        {
            "vocab_size": 200,
            **TRANSFORMER,
            "n_layers": 2,
            "cnn_hidden_dims": [8, 12, 16],
            "cnn_kernel_sizes": [3, 4, 5],
            "num_classes": 10,
        },
        [ids(200, 4, 20), MASK],
        (4, 10),
    ),
    "MultiTaskModel": (
        "models",
        {"vocab_size": 120, **TRANSFORMER, "n_layers": 2, "task_configs": TASKS},
        [ids(120, 4, 50), "topic"],
        (4, 5),
    ),
    "HierarchicalAttentionNetwork": (
        "models",
        {
            "vocab_size": 80,
            "embed_dim": 20,
            "hidden_size": 12,
            "num_classes": 4,
            "num_sentences": 25,
            "dropout": 0.2,
        },
        [ids(80, 3, 25, 20)],
        (3, 4),
    ),
    "ResidualBlock1d": (
        "nn",
        {"channels": 6, "kernel_size": 3, "dropout": 0.1},
        [numbers(4, 6, 20)],
        (4, 6, 20),
    ),
    "DeepResidualCNN": (
        "models",
        {
            "input_dim": 30,
            "hidden_dims": [6, 8, 10, 12],
            "num_classes": 6,
            "num_residual_blocks": 3,
            "dropout": 0.15,
        },
        [numbers(5, 40, 30)],
        (5, 6),
    ),
}
# Signals are (B, T, C) here.
SIGNALS = ("Conv1DBlock", "ResidualBlock1d")


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    room, arguments, inputs, shape = CALLS[name]
    reference = getattr(getattr(torchref, room), name)(**arguments).double()
    model = getattr({"nn": nn, "models": models}[room], name)(**arguments, rngs=nnx.Rngs(0))
    theirs = reference(*(x if isinstance(x, str) else torch.tensor(x) for x in inputs))
    signal = functools.partial(np.swapaxes, axis1=1, axis2=2) if name in SIGNALS else np.asarray
    ours = model(*(x if isinstance(x, str) else jnp.asarray(signal(x)) for x in inputs))
    assert tuple(theirs.shape) == signal(ours).shape
    assert shape is None or tuple(theirs.shape) == shape


def test_names_and_defaults():
    x = jnp.asarray(numbers(2, 10, 16))
    for activation in ("gelu", "relu", "swish"):
        assert nn.TransformerBlock(16, 4, 32, activation=activation, rngs=nnx.Rngs(0))(x).shape == x.shape
    ids_ = jnp.asarray(ids(1000, 2, 10))
    model = nnx.eval_shape(lambda: models.CustomTransformer(vocab_size=1000, d_model=256, rngs=nnx.Rngs(0)))
    assert nnx.eval_shape(lambda m: m(ids_), model).shape == (2, 10, 256)


def test_the_factory():
    settings = {"vocab_size": 100, "d_model": 16, "n_layers": 1, "n_heads": 8, "d_ff": 24, "dropout": 0.1}
    assert ModelFactory.create_model("transformer", settings).config.d_ff == 24
    assert nnx.eval_shape(lambda: ModelFactory.create_model("transformer", MODEL_CONFIGS["transformer"]))
    with pytest.raises(UsageError, match=r"transformr.*transformer"):
        ModelFactory.create_model("transformr", {})


def test_a_mask_of_three_axes_hides_tokens():
    """Nobody attends to the last tokens, so they do not matter; to the others a token attends as the mask says."""
    settings = {**TRANSFORMER, "n_layers": 1, "dropout": 0.0}
    model = models.CustomTransformer(vocab_size=300, **settings, rngs=nnx.Rngs(0))
    pooled = models.TransformerCNN(
        vocab_size=300, **settings, cnn_hidden_dims=[5], cnn_kernel_sizes=[3], rngs=nnx.Rngs(0)
    )
    mask = np.tri(12, dtype=bool)[None].repeat(2, 0)
    mask[:, :, 9:] = False
    tokens = ids(300, 2, 12)
    changed = tokens.copy()
    changed[:, 9:] = (changed[:, 9:] + 1) % 300
    a, b = (model(jnp.asarray(x), jnp.asarray(mask)) for x in (tokens, changed))
    np.testing.assert_array_equal(a[:, :9], b[:, :9])
    a, b = (pooled(jnp.asarray(x), jnp.asarray(mask)) for x in (tokens, changed))
    np.testing.assert_array_equal(a, b)
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 300
    a, b = (model(jnp.asarray(x), jnp.asarray(mask)) for x in (tokens, changed))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).any()
