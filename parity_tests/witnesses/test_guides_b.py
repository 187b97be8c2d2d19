"""A guide to models for search engines: its models and calls, in both packages, with the arguments that it prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

import torchref.models
import torchref.nn
from jaxarch import models, nn
from jaxarch.errors import UsageError
from parity_tests.comparison import BOUND, error

SIZES = {"num_classes": 3, "hidden_size": 32, "num_layers": 2, "num_heads": 8}
SWITCHES = {
    "dropout_rate": 0.1,
    "max_length": 512,
    "use_layer_norm": True,
    "use_residual_connections": True,
    "activation_function": "gelu",
    "initialization_method": "xavier",
    "gradient_checkpointing": False,
}
TASKS = {
    "sentiment": {
        "num_classes": 3,
        "pooling_strategy": "mean",
        "use_attention_pooling": True,
        "loss_type": "cross_entropy",
    },
    "topic": {
        "num_classes": 5,
        "pooling_strategy": "attention",
        "use_attention_pooling": False,
        "loss_type": "cross_entropy",
    },
    "relevance": {"num_classes": 1, "loss_type": "binary_cross_entropy"},
}
RNG = np.random.default_rng(0)
IDS, MASK = RNG.integers(0, 1000, (8, 28)), np.ones((8, 28), np.float32)
LABELS = {
    "sentiment": RNG.integers(0, 3, 8),
    "topic": RNG.integers(0, 5, 8),
    "relevance": RNG.integers(0, 2, 8).astype(float),
}
# The room of models, its arrays, and what its constructors take besides.
SIDES = {
    "torchref": (torchref.models, torch.tensor, {}),
    "jaxarch": (models, jnp.asarray, {"rngs": nnx.Rngs(0)}),
}


def numbers(outputs):
    """A tensor or an array as numpy."""
    return np.asarray(outputs.detach() if isinstance(outputs, torch.Tensor) else outputs)


@pytest.mark.parametrize("side", SIDES)
def test_one_task(side):
    room, array, rngs = SIDES[side]
    config = room.CustomModelConfig(model_name="custom_seo_model", **SIZES, **SWITCHES)
    for model in (
        room.CustomSEOModel(config, **rngs),
        room.create_custom_model(config, **rngs),
    ):
        assert numbers(model(array(IDS), array(MASK))).shape == (8, 3)


def test_one_task_is_trained():
    _, _, rngs = SIDES["jaxarch"]
    model = models.create_custom_model("seo_classifier", **SIZES, **rngs)
    labels = jnp.asarray(LABELS["sentiment"])

    def loss(model):
        outputs = jax.nn.log_softmax(model(jnp.asarray(IDS), jnp.asarray(MASK)))
        return -jnp.take_along_axis(outputs, labels[:, None], 1).mean()

    gradient = nnx.grad(loss)(model)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    reference = torchref.models.create_custom_model("seo_classifier", **SIZES)
    F.cross_entropy(
        reference(torch.tensor(IDS), torch.tensor(MASK)), torch.tensor(LABELS["sentiment"])
    ).backward()
    assert all(p.grad is not None for p in reference.parameters())


@pytest.mark.parametrize("side", SIDES)
def test_several_tasks(side):
    room, array, rngs = SIDES[side]
    config = room.CustomModelConfig(model_name="seo", **SIZES)
    build = room.create_multi_task_model
    model = build(config, TASKS, **rngs)
    model.eval()
    outputs = model(array(IDS), array(MASK))
    assert {k: numbers(v).shape for k, v in outputs.items()} == {
        "sentiment": (8, 3),
        "topic": (8, 5),
        "relevance": (8, 1),
    }
    targets = {k: array(v) for k, v in LABELS.items()}
    loss = numbers(model.compute_multi_task_loss(outputs, targets))
    plain = {k: torch.tensor(numbers(v)).double() for k, v in outputs.items()}
    expected = {
        "sentiment": F.cross_entropy(plain["sentiment"], torch.tensor(LABELS["sentiment"])),
        "topic": F.cross_entropy(plain["topic"], torch.tensor(LABELS["topic"])),
        "relevance": F.binary_cross_entropy_with_logits(
            plain["relevance"][:, 0], torch.tensor(LABELS["relevance"])
        ),
    }
    assert loss.shape == ()
    bound = BOUND if side == "jaxarch" else 1e-6  # torch's default is float32
    assert error(loss, sum(expected.values()).numpy()) < bound
    parts = model.task_losses(outputs, targets)
    assert all(error(numbers(parts[k]), v.numpy()) < bound for k, v in expected.items())
    # Attention pools where the task says so, whatever its strategy.
    assert [model.poolings[task].strategy for task in TASKS] == ["attention", "attention", "cls"]


def test_components():
    arguments = {"d_model": 24, "num_heads": 12, "dropout": 0.1}
    x = np.asarray(RNG.normal(size=(2, 7, 24)))
    for name, more in (("MultiHeadAttention", {}), ("TransformerBlock", {"d_ff": 30, "activation": "gelu"})):
        reference = getattr(torchref.nn, name)(**arguments, **more).double()
        model = getattr(nn, name)(**arguments, **more, rngs=nnx.Rngs(0))
        assert numbers(reference(torch.tensor(x))).shape == model(jnp.asarray(x)).shape == x.shape
    assert torchref.nn.PositionalEncoding(d_model=768, max_len=5000).pe.shape == (5000, 1, 768)
    for bad in ({}, {"n_heads": 4, "num_heads": 6}):
        with pytest.raises(UsageError, match="number of heads once"):
            nn.MultiHeadAttention(24, **bad, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="number of heads once"):
            torchref.nn.TransformerBlock(24, **bad)
