"""Activations with other arguments than their defaults, against torch's: values and gradients, at kinks too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import nn
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import DataError, UsageError

KINKS = [-1e3, -6.0, -3.0, -2.0, -1.0, -0.7, -0.5, -0.0, 0.0, 0.5, 0.7, 1.0, 2.0, 3.0, 6.0, 10.0, 10.5, 1e3]
LAYERS = {
    "LeakyReLU": {"negative_slope": 0.2},
    "ELU": {"alpha": 0.7},
    "CELU": {"alpha": 1.6},
    "GELU": {"approximate": "tanh"},
    "Hardshrink": {"lambd": 0.7},
    "Softshrink": {"lambd": 0.7},
    "Hardtanh": {"min_val": -2.0, "max_val": 0.7},
    "Softplus": {"beta": 2.0, "threshold": 20.0},
    "Threshold": {"threshold": 0.7, "value": -3.0},
    "PReLU": {"init": 0.125},
    "ReLU": {"inplace": True},
}


@pytest.mark.parametrize("name", LAYERS)
def test_other_arguments_than_the_defaults(name):
    # Twice, so that torch's vectorised loop and its remainder both meet every kink.
    x = np.array(KINKS + KINKS)
    theirs, ours = getattr(tnn, name)(**LAYERS[name]).double(), getattr(nn, name)(**LAYERS[name])
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor.clone())
    cotangent = np.random.default_rng(0).normal(size=x.shape)
    expected.backward(torch.from_numpy(cotangent))
    actual, pullback = jax.vjp(ours, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-14, rtol=1e-14)
    np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], tensor.grad.numpy(), atol=1e-14)


def test_prelu_has_torchs_key_and_gradient():
    x = np.random.default_rng(0).normal(size=(2, 3, 5))
    x[0, 1, 2] = 0
    theirs, ours = tnn.PReLU(3).double(), nn.PReLU(3)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor([0.1, 0.2, -0.3]))
    load_state_dict(ours, theirs.state_dict())
    theirs(torch.from_numpy(x)).square().sum().backward()
    grads = nnx.grad(lambda layer: (layer(jnp.asarray(np.moveaxis(x, 1, -1))) ** 2).sum())(ours)
    np.testing.assert_allclose(grads.weight[...], theirs.weight.grad.numpy(), atol=1e-13)
    np.testing.assert_array_equal(to_state_dict(ours)["weight"], theirs.weight.detach().numpy())
    with pytest.raises(DataError, match="has 5 channels, the layer 3 slopes"):
        ours(jnp.asarray(x))


def test_rrelu_draws_a_slope_for_each_element():
    layer = nn.RReLU(0.1, 0.4, rngs=nnx.Rngs(0))
    x = -jnp.ones((50, 40))
    layer.train()
    slopes = -np.asarray(layer(x))
    assert slopes.min() >= 0.1
    assert slopes.max() <= 0.4
    np.testing.assert_allclose(slopes.mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(slopes.std(), 0.3 / np.sqrt(12), atol=0.01)
    assert len(np.unique(slopes)) > 1990
    assert not np.array_equal(slopes, -np.asarray(layer(x)))
    np.testing.assert_array_equal(layer(-x), -x)
    layer.eval()
    x = np.linspace(-2, 2, 9)
    expected = tnn.RReLU(0.1, 0.4).eval()(torch.from_numpy(x))
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected.numpy(), atol=1e-15)


def test_dim_counts_the_axes_of_the_array_as_it_is():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    image = jnp.asarray(np.moveaxis(x, 1, -1))
    tensor = torch.from_numpy(x)
    for name in ("Softmax", "LogSoftmax", "Softmin"):
        of_channels = np.moveaxis(getattr(tnn, name)(1)(tensor).numpy(), 1, -1)
        np.testing.assert_allclose(getattr(nn, name)(-1)(image), of_channels, atol=1e-14)
        of_columns = np.moveaxis(getattr(tnn, name)(3)(tensor).numpy(), 1, -1)
        np.testing.assert_allclose(getattr(nn, name)(2)(image), of_columns, atol=1e-14)
    glu = np.moveaxis(tnn.GLU(3)(tensor).numpy(), 1, -1)
    np.testing.assert_allclose(nn.GLU(2)(image), glu, atol=1e-14)
    np.testing.assert_allclose(
        nn.Softmax2d()(image), np.moveaxis(tnn.Softmax2d()(tensor).numpy(), 1, -1), atol=1e-14
    )


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 5), (3, 4, 5, 2), (2, 3, 4, 5, 2)])
def test_dim_none_is_torchs_choice(shape):
    x = np.random.default_rng(0).normal(size=shape)
    for name in ("Softmax", "LogSoftmax", "Softmin"):
        expected = getattr(tnn, name)()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(getattr(nn, name)()(jnp.asarray(x)), expected, atol=1e-14)


def test_softmax_of_a_narrow_dtype_sums_in_float32():
    x = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    expected = torch.from_numpy(x).bfloat16().softmax(-1)
    actual = nn.Softmax(-1)(jnp.asarray(x).astype(jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(actual.astype(jnp.float32)), expected.float().numpy())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.GELU("erf"), "unknown approximation 'erf'"),
        (lambda: nn.Softshrink(-1.0), "lambd must be at least 0"),
        (lambda: nn.Hardtanh(2.0, 1.0), "min_val 2.0 must be below max_val 1.0"),
        (lambda: nn.RReLU(0.5, 0.1, rngs=nnx.Rngs(0)), "lower 0.5 must not be above upper 0.1"),
        (lambda: nn.GLU()(jnp.ones((2, 3))), "glu halves dim -1"),
        (lambda: nn.Softmax2d()(jnp.ones((2, 3))), "Softmax2d takes"),
    ],
)
def test_errors_name_the_culprit(call, message):
    with pytest.raises((UsageError, DataError), match=message):
        call()
