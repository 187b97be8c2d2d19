"""Embedding and EmbeddingBag with every option, against torch's: outputs, gradients, the weight after the call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from comparison import JaxCall, TorchCall
from jaxarch import nn, state
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import DataError, UsageError
from jaxarch.parity import check
from jaxarch.train import step, tasks

RNGS = nnx.Rngs(0)
IDS = np.array([4, 2, 2, 0, 5, 3, 2, 6, 1])
OFFSETS = np.array([0, 2, 2, 5])
TABLES = {
    "padding": {"padding_idx": 2},
    "negative padding": {"padding_idx": -1},
    "max norm": {"max_norm": 1.1},
    "max norm of another type": {"max_norm": 1.5, "norm_type": 1.0, "padding_idx": 2},
    "largest element": {"max_norm": 0.7, "norm_type": float("inf")},
    "by frequency": {"scale_grad_by_freq": True},
    "by frequency with padding": {"scale_grad_by_freq": True, "padding_idx": 4},
}
BAGS = {
    "mean": {},
    "sum": {"mode": "sum"},
    "max": {"mode": "max"},
    "mean with padding": {"padding_idx": 2},
    "sum with padding": {"mode": "sum", "padding_idx": 2},
    "max with padding": {"mode": "max", "padding_idx": 2},
    "max norm": {"max_norm": 1.1, "mode": "sum"},
}


def pair(name, size, kwargs):
    torch.manual_seed(0)
    theirs = getattr(tnn, name)(*size, **kwargs).double()
    ours = getattr(nn, name)(*size, **kwargs, rngs=RNGS)
    load_state_dict(ours, theirs.state_dict())
    return theirs, ours


def assert_equal(theirs, ours, *inputs):
    """Outputs, gradients of the weight, and the weight after the call, in eval mode too."""
    theirs.zero_grad()
    expected = theirs(*map(torch.from_numpy, inputs))
    cotangent = np.random.default_rng(0).normal(size=expected.shape)
    expected.backward(torch.from_numpy(cotangent))

    def loss(layer):
        y = layer(*map(jnp.asarray, inputs))
        return (y * cotangent).sum(), y

    grads, y = nnx.grad(loss, has_aux=True)(ours)
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(grads.weight[...], theirs.weight.grad.numpy(), atol=1e-13)
    np.testing.assert_allclose(to_state_dict(ours)["weight"], theirs.weight.detach().numpy(), atol=1e-13)


@pytest.mark.parametrize("options", TABLES)
def test_embedding(options):
    theirs, ours = pair("Embedding", (7, 5), TABLES[options])
    assert_equal(theirs, ours, IDS.reshape(3, 3))
    assert_equal(theirs.eval(), ours, IDS[:2])


@pytest.mark.parametrize("options", BAGS)
@pytest.mark.parametrize(
    "inputs", [(IDS.reshape(3, 3),), (IDS, OFFSETS), (np.array([2, 2, 4]), np.array([0, 2]))]
)
def test_bag(options, inputs):
    theirs, ours = pair("EmbeddingBag", (7, 5), BAGS[options])
    if "max" not in options:
        return assert_equal(theirs, ours, *inputs)
    with torch.no_grad():
        theirs.weight[3] = theirs.weight[5]  # a tie: the gradient goes to the first
    load_state_dict(ours, theirs.state_dict())
    return assert_equal(theirs, ours, *inputs)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_last_offset_is_an_end(mode):
    theirs, ours = pair("EmbeddingBag", (7, 5), {"include_last_offset": True, "mode": mode})
    assert_equal(theirs, ours, IDS, np.array([0, 2, 2, len(IDS)]))
    with pytest.raises(DataError, match="the last offset 5 must be the number of ids 9"):
        ours(jnp.asarray(IDS), jnp.asarray([0, 5]))


def test_a_bag_by_frequency_divides_by_each_rows_own_count():
    """torch's Embedding and a sum are the witness: its EmbeddingBag on the CPU takes the counts of other rows."""
    theirs, ours = pair("EmbeddingBag", (7, 5), {"scale_grad_by_freq": True, "mode": "sum"})
    table = tnn.Embedding(7, 5, scale_grad_by_freq=True, _weight=theirs.weight.data)
    table(torch.from_numpy(IDS)).square().sum(0).sum().backward()
    ours_grad = nnx.grad(lambda bag: (bag(jnp.asarray(IDS[:, None])) ** 2).sum())(ours)
    np.testing.assert_allclose(ours_grad.weight[...], table.weight.grad.numpy(), atol=1e-13)


def test_weights_of_a_bag_get_a_gradient():
    theirs, ours = pair("EmbeddingBag", (7, 5), {"mode": "sum", "padding_idx": 2})
    weights = np.random.default_rng(1).normal(size=IDS.shape)
    tensor = torch.from_numpy(weights).requires_grad_()
    expected = theirs(torch.from_numpy(IDS), torch.from_numpy(OFFSETS), tensor)
    cotangent = np.random.default_rng(0).normal(size=expected.shape)
    expected.backward(torch.from_numpy(cotangent))
    y, pullback = jax.vjp(lambda w: ours(jnp.asarray(IDS), jnp.asarray(OFFSETS), w), jnp.asarray(weights))
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-14)
    np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], tensor.grad.numpy(), atol=1e-14)


def test_parity_trains_from_the_shortened_rows_too(monkeypatch):
    theirs, ours = pair("Embedding", (7, 5), {"max_norm": 1.1})
    unnamed = lambda layer, x: layer(x)  # noqa: E731
    result = check(TorchCall(theirs, unnamed), JaxCall(ours, unnamed), {"x": IDS})
    assert result.ok, result.detail
    monkeypatch.setattr(state, "set_by_call", lambda model, params: {})  # a fault
    assert not check(TorchCall(theirs, unnamed), JaxCall(ours, unnamed), {"x": IDS}).ok


class Classifier(nnx.Module):
    """Logits from a table whose rows a call shortens."""

    def __init__(self):
        self.table = nn.Embedding(7, 5, max_norm=1.1, rngs=RNGS)
        self.head = nn.Linear(5, 3, rngs=RNGS)

    def __call__(self, x):
        return self.head(self.table(x))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_starts_from_the_rows_that_the_call_shortened(accumulate):
    torch.manual_seed(0)
    theirs = tnn.ModuleDict({"table": tnn.Embedding(7, 5, max_norm=1.1), "head": tnn.Linear(5, 3)}).double()
    ours = Classifier()
    load_state_dict(ours, theirs.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    graph, params, rest = state.split(ours)
    sgd = optax.sgd(0.5)
    advance = step.make_train_step(graph, tasks.task("classification"), sgd, accumulate=accumulate)
    now = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={"model": sgd.init(params)},
        ema_params={},
    )
    rng = np.random.default_rng(0)
    for _ in range(3):
        x, label = rng.integers(0, 7, 4), rng.integers(0, 3, 4)
        optimizer.zero_grad()
        logits = theirs["head"](theirs["table"](torch.from_numpy(x)))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(label)).backward()
        optimizer.step()
        now, _ = advance(now, {"x": jnp.asarray(x), "label": jnp.asarray(label)})
        for key, value in theirs.state_dict().items():
            ours_value = np.asarray(now.params[key])
            expected = value.numpy().T if key == "head.weight" else value.numpy()
            np.testing.assert_allclose(ours_value, expected, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("name", ["Embedding", "EmbeddingBag"])
def test_from_pretrained(name):
    table = np.random.default_rng(0).normal(size=(7, 5))
    theirs = getattr(tnn, name).from_pretrained(torch.from_numpy(table), padding_idx=2, max_norm=1.1)
    ours = getattr(nn, name).from_pretrained(jnp.asarray(table), padding_idx=2, max_norm=1.1)
    ids = IDS.reshape(3, 3)
    np.testing.assert_allclose(ours(jnp.asarray(ids)), theirs(torch.from_numpy(ids)).numpy(), atol=1e-14)
    assert not jax.tree.leaves(nnx.state(ours, nnx.Param))
    assert set(to_state_dict(ours)) == {"weight"}
    trained = getattr(nn, name).from_pretrained(jnp.asarray(table), freeze=False)
    assert jax.tree.leaves(nnx.state(trained, nnx.Param))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Embedding(-1, 3, rngs=RNGS), "cannot have the size"),
        (lambda: nn.Embedding(4, 3, 4, rngs=RNGS), "padding_idx 4 is not a row"),
        (lambda: nn.EmbeddingBag(4, 3, mode="median", rngs=RNGS), "unknown mode 'median'"),
        (
            lambda: nn.EmbeddingBag(4, 3, mode="max", scale_grad_by_freq=True, rngs=RNGS),
            "mode 'max' takes neither",
        ),
        (lambda: nn.EmbeddingBag(4, 3, rngs=RNGS)(jnp.arange(3)), "bags are ids"),
        (
            lambda: nn.EmbeddingBag(4, 3, rngs=RNGS)(jnp.arange(3), jnp.asarray([1, 2])),
            "offsets must rise from 0",
        ),
        (lambda: nn.EmbeddingBag(4, 3, rngs=RNGS)(jnp.asarray([[4]])), "id 4 is out of range"),
        (
            lambda: nn.EmbeddingBag(4, 3, rngs=RNGS)(jnp.asarray([[1]]), None, jnp.ones((1, 1))),
            "per_sample_weights need mode 'sum'",
        ),
    ],
)
def test_errors_name_the_culprit(call, message):
    with pytest.raises((UsageError, DataError), match=message):
        call()
