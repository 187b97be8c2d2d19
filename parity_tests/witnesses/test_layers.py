"""Every layer against torch's: outputs, gradients of parameters and input, statistics, training, in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from comparison import JaxCall, TorchCall
from jaxarch import catalog, nn
from jaxarch.convert.layout import layout
from jaxarch.errors import DataError, UsageError
from jaxarch.parity import check
from torchref import nn as rnn

RNGS = nnx.Rngs(0)
SIGNAL, IMAGE = ("signal", (3, 4, 11)), ("image", (2, 4, 9, 7))

# id -> (name, arguments, keyword arguments, kind and shape of the input)
LAYERS = {
    "linear": ("Linear", (5, 3), {}, ("features", (4, 5))),
    "linear-no-bias": ("Linear", (4, 4), {"bias": False}, ("features", (2, 3, 4))),
    "conv1d": ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}, SIGNAL),
    "conv1d-same": ("Conv1d", (4, 6, 4), {"padding": "same", "bias": False}, SIGNAL),
    "conv2d-stride": ("Conv2d", (4, 6, 3, 2, 1), {}, IMAGE),
    "conv2d-uneven": ("Conv2d", (4, 6, (3, 2), (2, 1), (0, 1)), {"groups": 2}, IMAGE),
    "conv2d-dilated": ("Conv2d", (4, 4, 3), {"dilation": (1, 2), "padding": "valid", "groups": 4}, IMAGE),
    "up1d": ("ConvTranspose1d", (4, 6, 3, 2, 1, 1), {}, SIGNAL),
    "up1d-groups": ("ConvTranspose1d", (4, 6, 4, 3, 0, 0, 2), {"dilation": 2, "bias": False}, SIGNAL),
    "up2d": ("ConvTranspose2d", (4, 6, 3, 2, 1, 1), {}, IMAGE),
    "up2d-groups": ("ConvTranspose2d", (4, 6, (3, 2), (2, 1), (1, 0), 0, 2), {"dilation": (1, 2)}, IMAGE),
    "layer-norm": ("LayerNorm", (7,), {}, ("features", (3, 7))),
    "layer-norm-2": ("LayerNorm", ((4, 7),), {"bias": False}, ("features", (3, 4, 7))),
    "group-norm": ("GroupNorm", (2, 4), {}, IMAGE),
    "rms-norm": ("RMSNorm", (7,), {}, ("features", (3, 7))),
    "rms-norm-eps": ("RMSNorm", (7, 1e-3), {}, ("features", (3, 7))),
    "batch-norm-1d": ("BatchNorm1d", (4,), {}, ("features", (5, 4))),
    "batch-norm-signal": ("BatchNorm1d", (4, 1e-3, 0.3), {}, SIGNAL),
    "batch-norm-2d": ("BatchNorm2d", (4,), {}, IMAGE),
    "batch-norm-mean": ("BatchNorm2d", (4,), {"momentum": None, "affine": False}, IMAGE),
    "batch-norm-untracked": ("BatchNorm2d", (4,), {"track_running_stats": False}, IMAGE),
    "max-1d": ("MaxPool1d", (3, 2, 1), {"ceil_mode": True}, SIGNAL),
    "max-2d": ("MaxPool2d", (3, 2, 1), {}, IMAGE),
    "max-2d-ceil": ("MaxPool2d", (2,), {"ceil_mode": True}, IMAGE),
    "max-2d-dilated": ("MaxPool2d", (2, 2, 1, 2), {"ceil_mode": True}, IMAGE),
    "avg-1d": ("AvgPool1d", (3, 2, 1), {"count_include_pad": False}, SIGNAL),
    "avg-2d": ("AvgPool2d", (3, 2, 1), {}, IMAGE),
    "avg-2d-ceil": ("AvgPool2d", (3, 2, 1), {"ceil_mode": True}, ("image", (2, 4, 8, 7))),
    "avg-2d-ceil-uncounted": ("AvgPool2d", (2, 2, 1), {"ceil_mode": True, "count_include_pad": False}, IMAGE),
    "avg-2d-divisor": ("AvgPool2d", ((3, 2),), {"divisor_override": 5}, IMAGE),
    "adaptive-avg-1d": ("AdaptiveAvgPool1d", (4,), {}, SIGNAL),
    "adaptive-avg-2d": ("AdaptiveAvgPool2d", ((4, 3),), {}, IMAGE),
    "adaptive-avg-2d-up": ("AdaptiveAvgPool2d", ((None, 11),), {}, IMAGE),
    "adaptive-max-1d": ("AdaptiveMaxPool1d", (4,), {}, SIGNAL),
    "adaptive-max-2d": ("AdaptiveMaxPool2d", ((4, 3),), {}, IMAGE),
    "flatten": ("Flatten", (), {}, IMAGE),
    "dropout": ("Dropout", (0.4,), {}, ("features", (3, 5))),
    "dropout-1d": ("Dropout1d", (0.4,), {}, SIGNAL),
    "dropout-2d": ("Dropout2d", (0.4,), {}, IMAGE),
    "dropout-alpha": ("AlphaDropout", (0.4,), {}, IMAGE),
    "dropout-feature-alpha": ("FeatureAlphaDropout", (0.4,), {}, SIGNAL),
    "conv-block": ("ConvBlock", (4, 8), {"dropout_rate": 0.3, "activation": "silu"}, IMAGE),
    "conv-block-plain": ("ConvBlock", (4, 8, 5, 2, 2), {"batch_norm": False}, IMAGE),
    "residual": ("ResidualBlock", (4, 4), {}, IMAGE),
    "residual-down": ("ResidualBlock", (4, 8, 2), {}, IMAGE),
    "se": ("SEBlock", (4, 2), {}, IMAGE),
    **{f"activation-{a}": ("Activation", (a,), {}, ("features", (4, 6))) for a in nn.ACTIVATIONS},
}
FEATURES_OUT = {"Linear", "Flatten"}


def unnamed(layer, x):
    """The call of a layer whose argument has different names in the two packages."""
    return layer(x)


def build(name, args, kwargs):
    torch.manual_seed(0)
    theirs = getattr(rnn, name)(*args, **kwargs)
    cls = getattr(nn, name)
    takes_rngs = "rngs" in __import__("inspect").signature(cls.__init__).parameters
    return theirs, cls(*args, **kwargs, **({"rngs": RNGS} if takes_rngs else {}))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layer", LAYERS)
def test_layer(layer):
    name, args, kwargs, (kind, shape) = LAYERS[layer]
    theirs, ours = build(name, args, kwargs)
    x = np.random.default_rng(0).normal(size=shape)
    outputs = "features" if name in FEATURES_OUT else kind
    calls = TorchCall(theirs, unnamed), JaxCall(ours, unnamed)
    result = check(*calls, {"x": x}, kinds={"x": kind}, outputs=outputs)
    assert result.ok, result.detail


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
def test_gradients_at_kinks(activation):
    x = np.array([-1e3, -3.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0, 6.0, 7.0, 20.0, 21.0, 1e3])
    theirs = torch.from_numpy(x).requires_grad_()
    expected = rnn.get_activation(activation)(theirs)
    cotangent = np.random.default_rng(0).normal(size=expected.shape)
    expected.backward(torch.from_numpy(cotangent))
    actual, pullback = jax.vjp(nn.get_activation(activation), jnp.asarray(x))
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-14, rtol=1e-14)
    np.testing.assert_allclose(pullback(jnp.asarray(cotangent))[0], theirs.grad.numpy(), atol=1e-14)


def test_ties_go_to_the_first():
    for name, args in (("MaxPool2d", (2,)), ("MaxPool2d", (2, 1, 1, 2)), ("AdaptiveMaxPool2d", (2,))):
        theirs, ours = build(name, args, {})
        x = np.zeros((1, 1, 5, 5))
        tensor = torch.from_numpy(x).requires_grad_()
        theirs(tensor).sum().backward()
        gradient = jax.grad(lambda v, ours=ours: ours(v).sum())(jnp.asarray(np.moveaxis(x, 1, -1)))
        np.testing.assert_array_equal(np.moveaxis(gradient, -1, 1), tensor.grad.numpy(), err_msg=name)


def test_embedding():
    ids = np.array([[0, 2, 2], [1, 4, 0]])
    torch.manual_seed(0)
    theirs, ours = tnn.Embedding(5, 3, padding_idx=2), nn.Embedding(5, 3, padding_idx=2, rngs=RNGS)
    result = check(TorchCall(theirs, unnamed), JaxCall(ours, unnamed), {"x": ids})
    assert result.ok, result.detail
    assert not np.asarray(ours.weight[2]).any()
    for bad in (5, -1):
        with pytest.raises(DataError, match=f"id {bad} is out of range"):
            ours(jnp.asarray([bad]))
        assert np.isnan(jax.jit(lambda i: ours(i))(jnp.asarray([bad]))).all()


def test_frozen_batch_norm_is_torchs_eval():
    theirs, ours = build("BatchNorm2d", (4,), {})
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 5))
    theirs = theirs.double().train()
    theirs(torch.from_numpy(x))
    ours.train()
    ours(jnp.asarray(np.moveaxis(x, 1, -1)))
    theirs.eval()
    ours.freeze()
    before = np.asarray(ours.running_var[...])
    y = ours(jnp.asarray(np.moveaxis(x, 1, -1)))
    np.testing.assert_allclose(
        np.moveaxis(y, -1, 1), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-12
    )
    np.testing.assert_array_equal(ours.running_var[...], before)
    with pytest.raises(DataError, match="more than 1 value per channel"):
        nn.BatchNorm1d(3, rngs=RNGS)(jnp.ones((1, 3)))


def test_statistics_do_not_cancel_and_stay_in_full_precision():
    x = 1000 + np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    layer = nn.LayerNorm(64, elementwise_affine=False, rngs=RNGS)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x.astype(np.float64)), (64,)).numpy()
    np.testing.assert_allclose(np.asarray(layer(jnp.asarray(x))), expected, atol=1e-3)
    norm = nn.BatchNorm1d(64, rngs=RNGS)
    y = norm(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert norm.running_mean.dtype == jnp.float64


MOMENTS = {
    "Linear": ("Linear", (300, 200), ("weight", "bias")),
    "Conv1d": ("Conv1d", (64, 96, 5), ("weight", "bias")),
    "Conv2d": ("Conv2d", (32, 64, 5), ("weight", "bias")),
    "ConvTranspose2d": ("ConvTranspose2d", (32, 64, 5), ("weight", "bias")),
    "Embedding": ("Embedding", (300, 200), ("weight",)),
    "LSTM": ("LSTM", (64, 96), ("weight_ih_l0", "bias_hh_l0")),
}


@pytest.mark.parametrize("layer", MOMENTS)
def test_initialisers_have_torchs_moments(layer):
    name, args, leaves = MOMENTS[layer]
    theirs, ours = build(name, args, {})
    for leaf in leaves:
        a, b = getattr(theirs, leaf).detach().numpy(), np.asarray(getattr(ours, leaf)[...])
        spread = 4 * a.std() / np.sqrt(a.size)
        assert abs(a.mean() - b.mean()) < 2 * spread
        assert abs(a.std() / b.std() - 1) < 8 / np.sqrt(a.size) + 1e-3
        if name != "Embedding":
            assert np.abs(b).max() == pytest.approx(np.abs(a).max(), rel=0.02 + 6 / a.size)


@pytest.mark.parametrize("how", nn.INITIALIZERS)
def test_named_initialisers_have_torchs_moments(how):
    theirs = rnn.initialized(tnn.Conv2d(32, 64, 3), how)
    ours = nn.initialized(nn.Conv2d(32, 64, 3, rngs=RNGS), how, rngs=RNGS)
    a, b = theirs.weight.detach().numpy(), np.asarray(ours.weight[...])
    assert abs(a.std() / b.std() - 1) < 0.02
    assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.3)
    assert not np.asarray(ours.bias[...]).any()
    if how == "orthogonal":
        flat = b.transpose(3, 2, 0, 1).reshape(64, -1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(64), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.get_activation("gleu"), "did you mean .*'gelu'"),
        (lambda: nn.initializer("xaver"), "did you mean 'xavier'"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2, rngs=RNGS), "groups 2 must divide"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3), rngs=RNGS), "needs 2 numbers"),
        (lambda: nn.Conv2d(3, 4, 3, 2, "same", rngs=RNGS), "needs stride 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding="smae", rngs=RNGS), "'same' or 'valid'"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 0, 2, rngs=RNGS), "output_padding 2"),
        (lambda: nn.MaxPool2d(2, padding=2), "at most half"),
        (lambda: nn.GroupNorm(3, 4, rngs=RNGS), "does not divide"),
        (lambda: nn.Dropout(1.5, rngs=RNGS), r"must be in \[0, 1\]"),
        (lambda: nn.SEBlock(4, rngs=RNGS), "at least the reduction"),
    ],
)
def test_wrong_arguments(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_wrong_channels():
    with pytest.raises(DataError, match="has 4 channels last, the layer needs 3"):
        nn.Conv2d(3, 4, 3, rngs=RNGS)(jnp.ones((1, 8, 8, 4)))


NORM = ("weight", "bias", "running_mean", "running_var")
BLOCK_KEYS = {
    "ConvBlock": (nn.ConvBlock, (3, 8), {"conv.weight": (8, 3, 3, 3), "batch_norm": 8}),
    "SEBlock": (nn.SEBlock, (32,), {"excitation.0.weight": (2, 32), "excitation.2.weight": (32, 2)}),
    "ResidualBlock": (
        nn.ResidualBlock,
        (8, 16, 2),
        {
            "conv1.weight": (16, 8, 3, 3),
            "bn1": 16,
            "conv2.weight": (16, 16, 3, 3),
            "bn2": 16,
            "downsample.0.weight": (16, 8, 1, 1),
            "downsample.1": 16,
        },
    ),
    "MLP": (
        lambda *a, rngs: catalog.create_model("mlp", "tiny", rngs=rngs),
        (),
        {
            "network.0.weight": (16, 10),
            "network.0.bias": (16,),
            "network.1": 16,
            "network.4.weight": (12, 16),
            "network.4.bias": (12,),
            "network.5": 12,
            "network.8.weight": (5, 12),
            "network.8.bias": (5,),
        },
    ),
}


@pytest.mark.parametrize("cls", BLOCK_KEYS)
def test_names_of_blocks(cls):
    make, args, expected = BLOCK_KEYS[cls]
    wanted = {}
    for key, value in expected.items():
        if isinstance(value, int):
            wanted |= {f"{key}.{leaf}": (value,) for leaf in NORM} | {f"{key}.num_batches_tracked": ()}
        else:
            wanted[key] = value
    from jaxarch.convert import to_state_dict

    model = make(*args, rngs=RNGS)
    assert {k: v.shape for k, v in to_state_dict(model).items()} == wanted
    assert all(r.path == r.torch for r in layout(model))


def test_names_of_advanced_cnn():
    from jaxarch.convert import to_state_dict

    model = catalog.create_model("advanced_cnn", "base", base_channels=8, num_blocks=(2, 1, 1, 1))
    shapes = {k: v.shape for k, v in to_state_dict(model).items()}
    assert shapes["conv1.conv.weight"] == (8, 3, 7, 7)
    assert shapes["layer1.1.conv2.weight"] == (8, 8, 3, 3)
    assert shapes["layer4.0.downsample.0.weight"] == (64, 32, 1, 1)
    assert shapes["attention.excitation.0.weight"] == (4, 64)
    assert shapes["fc.weight"] == (10, 64)
    # 6 entries a block of two norms and two convolutions, and so on: 12 a block, 6 a shortcut.
    assert len(shapes) == 6 + 5 * 12 + 3 * 6 + 2 + 2
