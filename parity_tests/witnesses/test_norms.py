"""Normalisation beyond PyTorch's own samples: several steps, axes, narrow dtypes and errors, against torch's."""

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

STEPS = {
    "cumulative": ("BatchNorm1d", {"momentum": None, "bias": False}, (4, 3, 5)),
    "signal": ("BatchNorm1d", {"momentum": 0.3}, (4, 3, 5)),
    "video": ("BatchNorm3d", {"affine": False}, (2, 3, 2, 4, 5)),
    "instance": ("InstanceNorm2d", {"track_running_stats": True, "affine": True}, (2, 3, 4, 5)),
    "instance without momentum": (
        "InstanceNorm1d",
        {"track_running_stats": True, "momentum": None},
        (2, 3, 5),
    ),
    "instance of one example": ("InstanceNorm1d", {"track_running_stats": True}, (3, 5)),
}


@pytest.mark.parametrize("case", STEPS)
def test_three_steps_then_eval(case):
    name, kwargs, shape = STEPS[case]
    theirs, ours = getattr(tnn, name)(3, **kwargs).double(), getattr(nn, name)(3, **kwargs)
    channels = 0 if case == "instance of one example" else 1
    rng = np.random.default_rng(0)
    for mode in ("train", "train", "train", "eval"):
        getattr(theirs, mode)()
        getattr(ours, mode)()
        x = rng.normal(2, 3, shape)
        expected = np.moveaxis(theirs(torch.from_numpy(x)).detach().numpy(), channels, -1)
        np.testing.assert_allclose(ours(jnp.asarray(np.moveaxis(x, channels, -1))), expected, atol=1e-12)
        state = theirs.state_dict()
        actual = to_state_dict(ours)
        assert set(actual) == set(state)
        for key, value in state.items():
            np.testing.assert_allclose(actual[key], value.numpy(), rtol=1e-13, err_msg=key)
    load_state_dict(ours, theirs.state_dict())
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}, strict=True)


def test_sync_batch_norm_is_the_batch_norm_of_the_whole_batch():
    x = np.random.default_rng(0).normal(size=(6, 3, 4, 5))
    # torch's SyncBatchNorm needs a GPU in train mode; on one device it is its BatchNorm2d.
    theirs, ours = tnn.BatchNorm2d(3).double(), nn.SyncBatchNorm(3)
    load_state_dict(ours, theirs.state_dict())
    image = np.moveaxis(x, 1, -1)
    expected = np.moveaxis(theirs(torch.from_numpy(x)).detach().numpy(), 1, -1)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @nnx.jit
    def call(layer, x):
        return layer(x)

    np.testing.assert_allclose(call(ours, jax.device_put(image, split)), expected, atol=1e-12)
    np.testing.assert_allclose(ours.running_var[...], theirs.running_var.numpy(), rtol=1e-13)
    grouped = nn.Sequential(nn.BatchNorm2d(3))
    nn.set_batch_groups(grouped, 2)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(grouped) is grouped
    assert grouped[0].groups == 1
    with pytest.raises(UsageError, match="leave process_group at None"):
        nn.SyncBatchNorm(3, process_group=1)


def test_normalized_shape_counts_the_axes_of_the_array_as_it_is():
    """A norm of whole images has (H, W, C) here where torch has (C, H, W); so do its arrays."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    for name in ("LayerNorm", "RMSNorm"):
        theirs = getattr(tnn, name)((3, 4, 5)).double()
        with torch.no_grad():
            theirs.weight.normal_()
        ours = getattr(nn, name)((4, 5, 3))
        state = {k: v.permute(1, 2, 0) for k, v in theirs.state_dict().items()}
        load_state_dict(ours, state)
        expected = np.moveaxis(theirs(torch.from_numpy(x)).detach().numpy(), 1, -1)
        np.testing.assert_allclose(ours(jnp.asarray(np.moveaxis(x, 1, -1))), expected, atol=1e-12)
        with pytest.raises(DataError, match="does not end in normalized_shape"):
            ours(jnp.asarray(x))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_rms_norms_default_eps_is_that_of_the_accumulation_dtype(dtype):
    x = 1e-4 * (1 + np.arange(4))
    theirs = tnn.RMSNorm(4, elementwise_affine=False)(torch.from_numpy(x).to(getattr(torch, dtype)))
    ours = nn.RMSNorm(4, elementwise_affine=False)(jnp.asarray(x, dtype))
    np.testing.assert_allclose(np.asarray(ours, np.float64), theirs.double().numpy(), rtol=4e-3)


def test_local_response_norm():
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 4))
    for args in ((4, 0.5, 0.8, 2.0), (5, 1.0), (9, 1.0)):
        tensor = torch.from_numpy(x).requires_grad_()
        expected = tnn.LocalResponseNorm(*args)(tensor)
        cotangent = np.random.default_rng(1).normal(size=x.shape)
        expected.backward(torch.from_numpy(cotangent))
        y, pullback = jax.vjp(nn.LocalResponseNorm(*args), jnp.asarray(np.moveaxis(x, 1, -1)))
        np.testing.assert_allclose(np.moveaxis(y, -1, 1), expected.detach().numpy(), atol=1e-13)
        grad = pullback(jnp.asarray(np.moveaxis(cotangent, 1, -1)))[0]
        np.testing.assert_allclose(np.moveaxis(grad, -1, 1), tensor.grad.numpy(), atol=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.BatchNorm1d(3)(jnp.ones((2, 4, 5, 3))), r"BatchNorm1d takes \(2, 3\) axes"),
        (lambda: nn.BatchNorm2d(3)(jnp.ones((2, 4, 5, 1))), "has 1 channels last, the layer needs 3"),
        (lambda: nn.GroupNorm(1, 3)(jnp.ones((2, 4, 5))), "has 5 channels last, the layer needs 3"),
        (lambda: nn.InstanceNorm1d(3)(jnp.ones((2, 1, 3))), "needs more than 1 position"),
        (lambda: nn.InstanceNorm2d(3, affine=True)(jnp.ones((2, 2, 2, 4))), "the layer needs 3"),
        (lambda: nn.LocalResponseNorm(2)(jnp.ones((2, 3))), "of 3 axes or more"),
        (lambda: nn.LocalResponseNorm(0), "size must be at least 1"),
        (lambda: nn.Linear(3, 2, rngs=nnx.Rngs(0))(jnp.ones((2, 4))), "has not the 3 features"),
        (
            lambda: nn.Bilinear(3, 2, 1, rngs=nnx.Rngs(0))(jnp.ones((2, 3)), jnp.ones((2, 3))),
            "Bilinear takes",
        ),
    ],
)
def test_errors_name_the_culprit(call, message):
    with pytest.raises((UsageError, DataError), match=message):
        call()


def test_a_linear_layer_of_no_features_is_its_bias():
    layer = nn.Linear(0, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(jnp.ones((2, 0))), np.broadcast_to(layer.bias[...], (2, 3)))


def test_channels_of_an_instance_norm_without_arrays_only_warn():
    with pytest.warns(UserWarning, match="has not num_features=3 channels"):
        nn.InstanceNorm1d(3)(jnp.ones((2, 5, 4)))
