"""A user's own pair: what is proven, what is named, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import nn
from jaxarch.errors import ConversionError, UsageError
from jaxarch.parity import catalog_pair, check, check_pair, run_cases


class Theirs(tnn.Module):
    def __init__(self):
        super().__init__()
        self.conv = tnn.Conv2d(3, 4, 3, padding=1)
        self.blocks = tnn.ModuleList([tnn.Sequential(tnn.Linear(4, 4), tnn.Tanh()) for _ in range(3)])
        self.norm = tnn.LayerNorm(4)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Block(nnx.List):
    def __init__(self, activation, rngs):
        super().__init__([nnx.Linear(4, 4, rngs=rngs), nn.Activation(activation)])

    def __call__(self, x):
        for layer in self:
            x = layer(x)
        return x


class Ours(nnx.Module):
    def __init__(self, activations=("tanh",) * 3, eps=1e-5):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), padding=1, rngs=rngs)
        self.blocks = nnx.List([Block(a, rngs) for a in activations])
        self.norm = nnx.LayerNorm(4, epsilon=eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        x = self.conv(x).mean((1, 2))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


INPUTS, KINDS = {"x": np.random.default_rng(0).normal(size=(2, 3, 5, 6))}, {"x": "image"}


@pytest.fixture(autouse=True)
def promotion():
    """Flax's own layers promote dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_flaxs_own_layers_agree():
    theirs, ours = Theirs(), Ours()
    before = {k: v.clone() for k, v in theirs.state_dict().items()}
    kernel = np.asarray(ours.conv.kernel[...])
    result = check(theirs, ours, INPUTS, kinds=KINDS)
    assert result.ok, result.detail
    assert result.minimum_bound < 1e-12
    # The modules given are not changed.
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())
    assert all(v.dtype == torch.float32 for v in theirs.state_dict().values())
    np.testing.assert_array_equal(ours.conv.kernel[...], kernel)


def test_the_first_module_that_diverges_is_named():
    result = check(Theirs(), Ours(("tanh", "silu", "silu")), INPUTS, kinds=KINDS)
    assert not result.ok
    assert "first divergence: blocks.1.1 (Tanh): forward error" in result.detail
    assert "norm (LayerNorm)" in check(Theirs(), Ours(eps=1e-3), INPUTS, kinds=KINDS).detail


@jax.custom_vjp
def skewed(x):
    return jnp.tanh(x)


skewed.defvjp(lambda x: (jnp.tanh(x), x), lambda x, d: (d * (1 - jnp.tanh(x) ** 2) * 1.001,))


def test_a_wrong_gradient_is_named():
    result = check(Theirs(), Ours(("tanh", skewed, "tanh")), INPUTS, kinds=KINDS)
    assert not result.ok
    assert result.outputs < 1e-12
    assert "blocks.1.1 (Tanh): backward error" in result.detail


class Scaled(tnn.Module):
    def forward(self, x):
        return x / x.abs().sum(-1, keepdim=True)


class ScaledOurs(nnx.Module):
    def __call__(self, x):
        return x / jnp.abs(x).sum(-1, keepdims=True) * jnp.where(x == x, 1.0, 0.0)


def test_one_sided_nan_is_red():
    x = np.ones((2, 3))
    ours = ScaledOurs()
    assert check(Scaled(), ours, {"x": x}).ok

    class NaN(nnx.Module):
        def __call__(self, x):
            return ours(x) * jnp.where(x > 0, jnp.nan, 1.0)

    result = check(Scaled(), NaN(), {"x": x})
    assert not result.ok
    assert "not finite in jax" in result.detail


def test_refusals():
    class Dropped(Ours):
        def __init__(self):
            super().__init__()
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    with pytest.raises(UsageError, match=r"drop is nnx\.Dropout.*jaxarch\.nn\.Dropout"):
        check(Theirs(), Dropped(), INPUTS, kinds=KINDS)
    assert check(Theirs(), Dropped(), INPUTS, kinds=KINDS, modes=("eval",)).ok
    renamed = Theirs()
    renamed.nrom = renamed.norm
    del renamed.norm
    with pytest.raises(ConversionError, match=r"missing: norm\.bias \(nearest: nrom\.bias\)"):
        check(renamed, Ours(), INPUTS, kinds=KINDS)
    with pytest.raises(UsageError, match="did you mean 'image'"):
        check(Theirs(), Ours(), INPUTS, kinds={"x": "imgae"})
    with pytest.raises(UsageError, match="is abstract"):
        check(Theirs(), nnx.eval_shape(Ours), INPUTS, kinds=KINDS)
    with pytest.raises(UsageError, match="did you mean 'train'"):
        check(Theirs(), Ours(), INPUTS, kinds=KINDS, modes=("eval", "trian"))
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(UsageError, match="jax_enable_x64"):
            check(Theirs(), Ours(), INPUTS, kinds=KINDS)
    finally:
        jax.config.update("jax_enable_x64", True)


class Returns(tnn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


class ReturnsOurs(nnx.Module):
    def __init__(self, output):
        self.output = output

    def __call__(self, x):
        return self.output(x)


def test_what_compares_nothing_is_refused():
    with pytest.raises(UsageError, match="no mode to compare in: give modes of eval, train"):
        check(Theirs(), Ours(), INPUTS, kinds=KINDS, modes=())
    for output in (lambda x: None, lambda x: x > 0):
        with pytest.raises(UsageError, match="Returns returns no floating array"):
            check(Returns(output), ReturnsOurs(output), {"x": np.ones((2, 3))})
    with pytest.raises(UsageError, match="neither parameters nor floating inputs"):
        check(Returns(lambda x: x / 2.0), ReturnsOurs(lambda x: x / 2.0), {"x": np.array([1, 2])})
    with pytest.raises(UsageError, match="no parity case"):
        run_cases([])


def test_an_output_of_one_framework_is_red():
    twice = ReturnsOurs(lambda x: (x, x))
    result = check(Returns(lambda x: (x,)), twice, {"x": np.ones((2, 3))})
    assert not result.ok
    assert "1 inf (missing in torch)" in result.detail
    result = check(Returns(lambda x: (x, x)), ReturnsOurs(lambda x: {"0": x}), {"x": np.ones((2, 3))})
    assert not result.ok
    assert "1 inf (missing in jax)" in result.detail


class Tied(tnn.Module):
    def __init__(self):
        super().__init__()
        self.embed = tnn.Embedding(7, 4)
        self.head = tnn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


class TiedOurs(nnx.Module):
    def __init__(self):
        self.embed = nn.Embedding(7, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.embed(x) @ self.embed.weight[...].T


def test_tied_weights():
    result = check(Tied(), TiedOurs(), {"x": np.array([[1, 2, 6]])})
    assert result.ok, result.detail


class Normed(tnn.Module):
    def __init__(self):
        super().__init__()
        self.fc = tnn.Linear(4, 4)
        self.bn = tnn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.fc(x))


class NormedOurs(nnx.Module):
    def __init__(self):
        self.fc = nn.Linear(4, 4, rngs=nnx.Rngs(0))
        self.bn = nn.BatchNorm1d(4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.bn(self.fc(x))


def test_structural_zeros_are_found_by_their_size():
    result = check(Normed(), NormedOurs(), {"x": np.random.default_rng(0).normal(size=(6, 4))})
    assert result.ok, result.detail
    assert result.structural_zeros == ("fc.bias",)


def test_a_module_that_scans_is_named(monkeypatch):
    """An error inside the scan of a cell is reported at the cell, not at what is inside."""
    pair = catalog_pair("conv_lstm", "tiny")
    assert check_pair(pair, "conv_lstm", "tiny", ("eval",)).ok
    step = jax.nn.sigmoid
    monkeypatch.setattr(jax.nn, "sigmoid", lambda x: step(x) * 1.001)
    result = check_pair(pair, "conv_lstm", "tiny", ("eval",))
    assert not result.ok
    assert "first divergence: cells.0 (ConvLSTMCell): forward error" in result.detail
