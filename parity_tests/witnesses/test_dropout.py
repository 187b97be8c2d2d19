"""Dropouts against torch's: its own masks, read from its outputs, give its outputs here; and how masks are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import nn
from jaxarch.errors import DataError, UsageError

CASES = {
    "any shape": ("Dropout", (40,), None),
    "1d": ("Dropout1d", (6, 7, 3), 1),
    "1d example": ("Dropout1d", (7, 3), 0),
    "2d": ("Dropout2d", (6, 7, 3, 4), 1),
    "2d of signals": ("Dropout2d", (6, 7, 3), 1),
    "3d": ("Dropout3d", (6, 7, 3, 4, 2), 1),
    "3d example": ("Dropout3d", (9, 3, 4, 2), 0),
    "alpha": ("AlphaDropout", (6, 7), None),
    "feature alpha": ("FeatureAlphaDropout", (6, 7, 3, 4), 1),
    "feature alpha without space": ("FeatureAlphaDropout", (6, 7), 1),
}
P = 0.4


def to_jax(value, channels):
    return value if channels is None else np.moveaxis(value, channels, -1)


def dropped_value(name):
    """What torch makes of a dropped element."""
    if "Alpha" not in name:
        return 0.0
    limit = 1.7580993408473766
    return -limit * (1 - P) / np.sqrt((limit**2 * P + 1) * (1 - P))


@pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input")
@pytest.mark.parametrize("case", CASES)
def test_torchs_masks_give_torchs_outputs(case):
    name, shape, channels = CASES[case]
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=shape)
    expected = to_jax(getattr(tnn, name)(P)(torch.from_numpy(x)).numpy(), channels)
    kept = ~np.isclose(expected, dropped_value(name), rtol=0, atol=1e-12)
    assert 0 < kept.mean() < 1
    ours = nn.Sequential(getattr(nn, name)(P, rngs=nnx.Rngs(0)))
    assert nn.label_dropouts(ours) == ["0"]
    image = jnp.asarray(to_jax(x, channels))
    with nn.record_masks() as shapes:
        ours(image)
    (mask_shape,) = shapes["0"]
    mask = kept[tuple(slice(None) if n > 1 else slice(0, 1) for n in mask_shape)]
    np.testing.assert_array_equal(np.broadcast_to(mask, kept.shape), kept)
    with nn.inject_masks({"0": [jnp.asarray(mask)]}):
        np.testing.assert_allclose(ours(image), expected, atol=1e-14)
    ours.eval()
    np.testing.assert_array_equal(ours(image), image)


@pytest.mark.parametrize(
    "name", ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout"]
)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing(name, p):
    shape = {"Dropout2d": (2, 3, 4, 5), "Dropout3d": (2, 3, 4, 5, 2)}.get(name, (2, 3, 4))
    x = np.random.default_rng(0).normal(size=shape)
    expected = getattr(tnn, name)(p)(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(getattr(nn, name)(p, rngs=nnx.Rngs(0))(jnp.asarray(x)), expected)


def test_alpha_dropout_keeps_mean_and_variance():
    x = jax.random.normal(jax.random.key(0), (400, 300))
    y = nn.AlphaDropout(0.3, rngs=nnx.Rngs(0))(x)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.Dropout(1.5, rngs=nnx.Rngs(0)), r"must be in \[0, 1\], not 1.5"),
        (lambda: nn.Dropout1d(rngs=nnx.Rngs(0))(jnp.ones((2, 2, 2, 2))), r"Dropout1d takes \(2, 3\) axes"),
        (lambda: nn.Dropout2d(rngs=nnx.Rngs(0))(jnp.ones((2, 2))), r"Dropout2d takes \(3, 4\) axes"),
        (lambda: nn.FeatureAlphaDropout(rngs=nnx.Rngs(0))(jnp.ones(2)), "FeatureAlphaDropout takes"),
    ],
)
def test_errors_name_the_culprit(call, message):
    with pytest.raises((UsageError, DataError), match=message):
        call()
