"""Weight norm, spectral norm and orthogonal weights against torch's, new and old: keys, training, power iteration."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn
from torch.nn.utils import parametrizations as theirs_new
from torch.nn.utils import parametrize as their_parametrize

from jaxarch import nn, state
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import UsageError
from jaxarch.nn.utils import parametrizations, parametrize

LAYERS = {
    "linear": ("Linear", (5, 3), (4, 5)),
    "square": ("Linear", (4, 4), (3, 4)),
    "wide": ("Linear", (3, 5), (4, 3)),
    "conv": ("Conv2d", (2, 3, (3, 2)), (2, 2, 5, 4)),
    "transposed": ("ConvTranspose1d", (2, 3, 4), (2, 2, 5)),
}
# (function, in the module of parametrizations or the older one, arguments, layers, what draws random numbers)
CASES = {
    "weight norm": ("weight_norm", True, {}, ("linear", "conv", "transposed")),
    "weight norm of dim 1": ("weight_norm", True, {"dim": 1}, ("linear", "conv")),
    "weight norm of all": ("weight_norm", True, {"dim": None}, ("linear",)),
    "weight norm of the bias": ("weight_norm", True, {"name": "bias"}, ("linear",)),
    "spectral norm": ("spectral_norm", True, {}, ("linear", "conv", "transposed")),
    "spectral norm, 3 steps, dim 1": (
        "spectral_norm",
        True,
        {"n_power_iterations": 3, "dim": 1, "eps": 1e-6},
        ("linear",),
    ),
    "spectral norm of the bias": ("spectral_norm", True, {"name": "bias"}, ("linear",)),
    "exponential": (
        "orthogonal",
        True,
        {"orthogonal_map": "matrix_exp"},
        ("square", "linear", "wide", "conv"),
    ),
    "cayley": ("orthogonal", True, {"orthogonal_map": "cayley"}, ("square", "linear", "wide")),
    "householder": ("orthogonal", True, {"orthogonal_map": "householder"}, ("square", "linear", "wide")),
    "default maps": ("orthogonal", True, {}, ("square", "wide")),
    "exponential alone": (
        "orthogonal",
        True,
        {"orthogonal_map": "matrix_exp", "use_trivialization": False},
        ("square", "linear"),
    ),
    "householder alone": (
        "orthogonal",
        True,
        {"orthogonal_map": "householder", "use_trivialization": False},
        ("square", "linear", "wide"),
    ),
    "old weight norm": ("weight_norm", False, {}, ("linear", "conv")),
    "old weight norm of all": ("weight_norm", False, {"dim": None}, ("linear",)),
    "old spectral norm": ("spectral_norm", False, {}, ("linear", "conv", "transposed")),
    "old spectral norm, 3 steps": ("spectral_norm", False, {"n_power_iterations": 3}, ("linear",)),
}
# The exponential takes seconds to compile: its square matrix stands for it in the fast suite.
SLOW = {(c, layer) for c in ("exponential", "exponential alone") for layer in ("linear", "wide", "conv")}
PAIRS = [
    pytest.param(case, layer, marks=[pytest.mark.slow] if (case, layer) in SLOW else [])
    for case, (*_, layers) in CASES.items()
    for layer in layers
]
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")


def build(case, layer):
    function, new, kwargs, _ = CASES[case]
    name, args, _ = LAYERS[layer]
    torch.manual_seed(0)
    theirs = getattr(theirs_new if new else tnn.utils, function)(getattr(tnn, name)(*args).double(), **kwargs)
    draws = {} if function == "weight_norm" else {"rngs": nnx.Rngs(1)}
    ours = getattr(nn, name)(*args, rngs=nnx.Rngs(0))
    ours = getattr(parametrizations if new else nn.utils, function)(ours, **kwargs, **draws)
    return theirs, ours


def randomized(theirs):
    """Other values than those of the start, at which some gradients vanish; the diagonal of reflections stays."""
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            noise = 0.3 * torch.randn_like(value)
            value += noise.tril(-1) if "original" in key and value.ndim > 1 else noise


def compared(theirs, ours, layer, mode):
    """Outputs, gradients and buffers of one call in both."""
    x = np.random.default_rng(0).normal(size=LAYERS[layer][2])
    images = x.ndim > 2
    getattr(theirs, mode)()
    getattr(ours, mode)()
    theirs.zero_grad()
    expected = theirs(torch.from_numpy(x))
    cotangent = np.random.default_rng(1).normal(size=expected.shape)
    expected.backward(torch.from_numpy(cotangent))
    graph, params, rest = state.split(ours)

    last = (lambda v: np.moveaxis(v, 1, -1)) if images else (lambda v: v)

    def forward(params):
        model = state.merge(graph, params, rest)
        return model(jnp.asarray(last(x))), state.rest_of(model)

    y, pullback, rest = jax.vjp(forward, params, has_aux=True)
    np.testing.assert_allclose(y, last(expected.detach().numpy()), atol=1e-12)
    grads = to_torch(layout(ours), pullback(jnp.asarray(last(cotangent)))[0])
    for key, parameter in theirs.named_parameters():
        np.testing.assert_allclose(grads[key], parameter.grad.numpy(), atol=1e-11, err_msg=key)
    state.update(ours, rest)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(to_state_dict(ours)[key], value.numpy(), atol=1e-12, err_msg=key)


@pytest.mark.parametrize(("option", "layer"), PAIRS)
def test_train_and_eval_are_torchs(option, layer):
    theirs, ours = build(option, layer)
    theirs(torch.from_numpy(np.random.default_rng(2).normal(size=LAYERS[layer][2])))
    randomized(theirs)
    load_state_dict(ours, theirs.state_dict())
    for mode in ("train", "eval"):
        compared(theirs, ours, layer, mode)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}, strict=True)


@pytest.mark.parametrize("option", [c for c in CASES if "spectral" not in c and "exponential alone" not in c])
def test_the_weight_is_what_it_was(option):
    """Our own start: the layer computes what it did; an orthogonal one has been made orthogonal before."""
    function, *_, (layer, *_) = CASES[option]
    name, args, _ = LAYERS[layer]
    plain, weight = getattr(nn, name)(*args, rngs=nnx.Rngs(0)), np.asarray(build(option, layer)[1].weight)
    if function == "weight_norm":
        np.testing.assert_allclose(weight, plain.weight[...], atol=1e-14)
        return
    theirs = getattr(tnn, name)(*args).double()
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(plain).items()})
    if args[0] == args[1]:
        theirs = theirs_new.orthogonal(theirs, **CASES[option][2])
        np.testing.assert_allclose(weight.T, theirs.weight.detach().numpy(), atol=1e-12)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    np.testing.assert_allclose(tall.T @ tall, np.eye(tall.shape[1]), atol=1e-13)


@pytest.mark.parametrize("option", ["spectral norm", "old spectral norm"])
def test_jit_is_eager(option):
    ours = build(option, "linear")[1]
    graph, params, rest = state.split(ours)

    @jax.jit
    def call(params, rest, x):
        model = state.merge(graph, params, rest)
        return model(x), state.rest_of(model)

    x = jnp.ones((2, 5))
    y, rest = call(params, rest, x)
    np.testing.assert_allclose(y, ours(x), atol=1e-14)
    for key, value in state.rest_of(ours).items():
        np.testing.assert_allclose(rest[key], value, atol=1e-14)


@pytest.mark.parametrize("new", [True, False])
def test_spectral_norm_finds_the_largest_singular_value(new):
    ours = (parametrizations if new else nn.utils).spectral_norm(
        nn.Linear(7, 5, rngs=nnx.Rngs(0)), n_power_iterations=100, rngs=nnx.Rngs(1)
    )
    ours(jnp.ones((1, 7)))
    ours.eval()
    np.testing.assert_allclose(np.linalg.norm(ours.weight, 2), 1, atol=1e-9)


@pytest.mark.parametrize("option", ["old weight norm", "old spectral norm", "weight norm", "spectral norm"])
def test_removal_leaves_the_computed_weight(option):
    theirs, ours = build(option, "conv")
    load_state_dict(ours, theirs.state_dict())
    theirs.eval()
    ours.eval()
    if option.startswith("old"):
        function = "remove_" + CASES[option][0]
        getattr(tnn.utils, function)(theirs)
        getattr(nn.utils, function)(ours)
        with pytest.raises(UsageError, match="has no"):
            getattr(nn.utils, function)(ours)
    else:
        their_parametrize.remove_parametrizations(theirs, "weight")
        parametrize.remove_parametrizations(ours, "weight")
    assert type(ours) is nn.Conv2d
    assert isinstance(ours.weight, nnx.Param)
    expected = {k: v.numpy() for k, v in theirs.state_dict().items()}
    actual = to_state_dict(ours)
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, atol=1e-13)


class Symmetric(nn.Module):
    """A stranger's parametrization."""

    def __call__(self, x):
        return jnp.triu(x) + jnp.triu(x, 1).T


class Scaled(nn.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.asarray(2.0))

    def __call__(self, x):
        return x * self.scale[...]

    def right_inverse(self, x):
        return x / self.scale[...]


def test_strangers_parametrizations_one_after_another():
    layer = parametrize.register_parametrization(nn.Linear(3, 3, rngs=nnx.Rngs(0)), "weight", Scaled())
    before = np.asarray(layer.weight)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    assert parametrize.is_parametrized(layer, "weight")
    assert not parametrize.is_parametrized(layer, "bias")
    keys = {"bias", "parametrizations.weight.original", "parametrizations.weight.0.scale"}
    assert set(to_state_dict(layer)) == keys
    torchs = np.triu(before.T) + np.triu(before.T, 1).T  # a parametrization sees torch's layout
    np.testing.assert_allclose(layer.weight, torchs.T, atol=1e-15)
    merged = state.merge(*state.split(layer))
    np.testing.assert_allclose(merged(jnp.ones((1, 3))), layer(jnp.ones((1, 3))), atol=1e-15)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    np.testing.assert_allclose(layer.weight[...], before / 2, atol=1e-15)


def test_setting_a_parametrized_weight_sets_its_originals():
    layer = parametrizations.weight_norm(nn.Linear(4, 3, rngs=nnx.Rngs(0)))
    new = jax.random.normal(jax.random.key(0), (4, 3))
    layer.weight = new
    np.testing.assert_allclose(layer.weight, new, atol=1e-14)
    assert set(to_state_dict(layer)) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: parametrizations.weight_norm(x, "wieght"), "has no parameter 'wieght'"),
        (lambda x: nn.utils.weight_norm(x, "wieght"), "has no parameter 'wieght'"),
        (
            lambda x: parametrizations.spectral_norm(x, n_power_iterations=0, rngs=nnx.Rngs(0)),
            "must be positive",
        ),
        (lambda x: parametrizations.spectral_norm(x, dim=2, rngs=nnx.Rngs(0)), "dim 2 is not an axis"),
        (lambda x: parametrizations.orthogonal(x, "bias", rngs=nnx.Rngs(0)), "is no matrix"),
        (
            lambda x: parametrizations.orthogonal(x, orthogonal_map="qr", rngs=nnx.Rngs(0)),
            "unknown orthogonal map",
        ),
        (lambda x: parametrize.remove_parametrizations(x, "weight"), "has no parametrized 'weight'"),
        (lambda x: nn.utils.remove_weight_norm(x), "has no WeightNorm of 'weight'"),
    ],
)
def test_errors_name_the_culprit(call, message):
    layer = nn.Linear(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(UsageError, match=message):
        call(layer)
    assert set(to_state_dict(layer)) == {"weight", "bias"}


SINGLE = """
import jax.numpy as jnp, numpy as np, torch
from flax import nnx
from torch.nn.utils import parametrizations as theirs
from jaxarch import nn
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.nn.utils import parametrizations as ours

rngs = nnx.Rngs(0)
x, ids = np.ones((4, 5), np.float32), np.array([[1, 2, 2], [0, 4, 6]], np.int32)
linear, single = torch.nn.Linear, lambda: nn.Linear(5, 3, rngs=rngs)
options = {"max_norm": 1.0, "padding_idx": 2}
for a, b, inputs in (
    (theirs.weight_norm(linear(5, 3)), ours.weight_norm(single()), x),
    (theirs.spectral_norm(linear(5, 3)), ours.spectral_norm(single(), rngs=rngs), x),
    (theirs.orthogonal(linear(5, 3)), ours.orthogonal(single(), rngs=rngs), x),
    (torch.nn.utils.spectral_norm(linear(5, 3)), nn.utils.spectral_norm(single(), rngs=rngs), x),
    (torch.nn.EmbeddingBag(7, 5, **options), nn.EmbeddingBag(7, 5, **options, rngs=rngs), ids),
    (torch.nn.BatchNorm1d(5, momentum=None), nn.BatchNorm1d(5, momentum=None), x),
):
    load_state_dict(b, a.state_dict())
    expected, actual = a(torch.from_numpy(inputs)).detach().numpy(), b(jnp.asarray(inputs))
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    a.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(b).items()})
    for key, value in a.state_dict().items():
        np.testing.assert_allclose(to_state_dict(b)[key], value.numpy(), atol=2e-6)
"""


def test_without_x64():
    subprocess.run([sys.executable, "-c", SINGLE], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
