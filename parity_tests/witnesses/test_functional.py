"""jaxarch.nn.functional against torch.nn.functional: outputs and gradients of every argument, and every name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from functions import assert_same, last
from jaxarch.errors import DataError, UsageError
from jaxarch.nn import functional

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.normal(size=shape)


X = drawn(2, 6, 4, 5)  # torch's (B, C, H, W)
IMAGE = {"moved": ("0.0",)}
FLAT = np.array([-4.0, -1.5, -0.5, 0.0, 0.5, 1.0, 3.0])
IDS = np.array([[0, 3, 3], [1, 0, 2]])
TABLE = drawn(5, 4)
HEADS = {"query": drawn(2, 4, 3, 5), "key": drawn(2, 4, 6, 5), "value": drawn(2, 4, 6, 2)}
KEPT = RNG.random((3, 6)) > 0.4
KEPT[1] = False

ACTIVATIONS = [
    *[(name, (FLAT,), {}) for name in ("relu", "relu6", "selu", "silu", "mish", "hardsigmoid", "hardswish")],
    *[(name, (FLAT,), {}) for name in ("tanhshrink", "softsign", "sigmoid", "logsigmoid", "tanh")],
    *[(name, (FLAT,), {}) for name in ("gelu", "rrelu", "leaky_relu", "elu", "celu", "hardtanh", "softplus")],
    *[(name, (FLAT,), {}) for name in ("hardshrink", "softshrink")],
    *[(name, (FLAT, 0.25), {}) for name in ("leaky_relu", "elu", "celu", "hardshrink", "softshrink")],
    ("gelu", (FLAT,), {"approximate": "tanh"}),
    ("hardtanh", (FLAT,), {"min_val": -0.5, "max_val": 1.0}),
    ("softplus", (FLAT,), {"beta": 2.0, "threshold": 1.5}),
    ("threshold", (FLAT, 0.5, 7.0), {}),
    ("glu", (drawn(3, 4),), {"dim": 1}),
    ("prelu", (X, drawn(6)), IMAGE),
    ("prelu", (X, drawn(1)), IMAGE),
    *[(name, (drawn(3, 4),), {"dim": 0}) for name in ("softmax", "log_softmax", "softmin")],
]
LINEAR = [
    ("linear", (drawn(2, 3, 4), drawn(5, 4), drawn(5)), {}),
    ("linear", (drawn(2, 3, 4), drawn(4)), {}),
    ("bilinear", (drawn(2, 3), drawn(2, 4), drawn(5, 3, 4), drawn(5)), {}),
    ("embedding", (IDS, TABLE), {"padding_idx": 3, "scale_grad_by_freq": True}),
    ("embedding_bag", (IDS, TABLE), {"mode": "max"}),
    (
        "embedding_bag",
        (IDS.reshape(-1), TABLE, np.array([0, 2, 2])),
        {"mode": "sum", "per_sample_weights": drawn(6), "padding_idx": 0},
    ),
]
CONVOLUTIONS = [
    ("conv1d", (X[..., 0], drawn(4, 3, 3), drawn(4), 1, "same", 2, 2), IMAGE),
    ("conv2d", (X, drawn(4, 3, 2, 3), drawn(4)), {**IMAGE, "stride": (2, 1), "padding": (1, 2), "groups": 2}),
    ("conv2d", (X, drawn(4, 6, 2, 3)), {**IMAGE, "padding": "valid"}),
    ("conv3d", (drawn(1, 2, 3, 4, 5), drawn(3, 2, 2, 1, 3)), IMAGE),
    ("conv_tbc", (drawn(6, 2, 3), drawn(3, 3, 4), drawn(4), 1), {}),
    ("conv_transpose1d", (X[..., 0], drawn(6, 2, 3), drawn(4), 2, 1, 1, 2, 2), IMAGE),
    ("conv_transpose2d", (X, drawn(6, 2, 3, 2), drawn(2)), {**IMAGE, "stride": 2, "padding": (1, 0)}),
    ("conv_transpose3d", (drawn(1, 2, 3, 4, 5), drawn(2, 3, 2, 1, 3)), IMAGE),
]
NORMS = [
    ("batch_norm", (X, None, None, drawn(6), drawn(6), True), {**IMAGE, "eps": 1e-3}),
    ("batch_norm", (X, drawn(6), RNG.random(6), drawn(6), drawn(6)), {**IMAGE, "constant": ("0.1", "0.2")}),
    ("instance_norm", (X,), {**IMAGE, "weight": drawn(6), "bias": drawn(6)}),
    ("layer_norm", (drawn(2, 3, 4), (4,), drawn(4), drawn(4)), {}),
    ("layer_norm", (drawn(2, 3, 4), (3, 4), drawn(3, 4)), {"eps": 1e-3}),
    ("rms_norm", (drawn(2, 3, 4), (3, 4), drawn(3, 4)), {}),
    ("group_norm", (X, 3, drawn(6), drawn(6)), IMAGE),
    ("local_response_norm", (X, 3), {**IMAGE, "alpha": 0.1, "k": 2.0}),
]
ATTENTION = [
    ("scaled_dot_product_attention", (), HEADS),
    ("scaled_dot_product_attention", (), {**HEADS, "attn_mask": KEPT, "scale": 0.7}),
    ("scaled_dot_product_attention", (), {**HEADS, "attn_mask": drawn(2, 1, 3, 6)}),
    ("scaled_dot_product_attention", (), {**HEADS, "is_causal": True}),
    (
        "scaled_dot_product_attention",
        (HEADS["query"], HEADS["key"][:, :2], HEADS["value"][:, :2]),
        {"enable_gqa": True},
    ),
]


def heads(t, width=6):
    """A sequence (T, 2, width)."""
    return drawn(t, 2, width)


MHA = (6, 3, drawn(18, 6), drawn(18))
OUT = (drawn(6, 6), drawn(6))
SEPARATE = {"q_proj_weight": drawn(6, 6), "k_proj_weight": drawn(6, 4), "v_proj_weight": drawn(6, 5)}
BLOCKED = np.array([[False, True, False, False], [False, False, False, True]])
MULTIHEAD = [
    ("multi_head_attention_forward", (heads(3), *[heads(4)] * 2, *MHA, None, None, False, 0.0, *OUT), {}),
    (
        "multi_head_attention_forward",
        (heads(3), *[heads(4)] * 2, *MHA, drawn(1, 1, 6), drawn(1, 1, 6), True, 0.5, *OUT),
        {"training": False, "key_padding_mask": BLOCKED, "attn_mask": drawn(6, 3, 4), "average_attn_weights": False},
    ),
    (
        "multi_head_attention_forward",
        (heads(4), *[heads(4)] * 2, *MHA, None, None, True, 0.0, *OUT),
        {"need_weights": False, "attn_mask": ~np.tri(4, dtype=bool), "is_causal": True},
    ),
    (
        "multi_head_attention_forward",
        (heads(3), heads(4, 4), heads(4, 5), 6, 3, None, None, None, None, False, 0.0, *OUT),
        {"use_separate_proj_weight": True, **SEPARATE},
    ),
    (
        "multi_head_attention_forward",
        (drawn(3, 6), *[drawn(4, 6)] * 2, *MHA, None, None, False, 0.0, *OUT),
        {"key_padding_mask": BLOCKED[0]},
    ),
    (
        "multi_head_attention_forward",
        (heads(3), *[heads(4)] * 2, *MHA, None, None, False, 0.0, *OUT),
        {"static_k": drawn(6, 5, 2), "static_v": drawn(6, 5, 2), "need_weights": False},
    ),
]  # fmt: skip
PADS = [
    ("pad", (X, (1, 2, 0, 3)), {**IMAGE, "value": 7.0}),
    ("pad", (X, (1, -2, 0, 3, 4, 5, 1, 0)), IMAGE),
    ("pad", (X, (1, 2, 3, 1), "reflect"), IMAGE),
    ("pad", (X, (1, 2, 3, 1), "replicate"), IMAGE),
    ("pad", (X[..., 0], (1, 2), "circular"), IMAGE),
    ("pad", (drawn(3, 4), (1, 2, 0, 1)), {}),
    ("pad", (np.arange(6).reshape(2, 3), (0, 2)), {"value": 9}),
]
SPACE = [
    *[
        (
            "interpolate",
            (X,),
            {**IMAGE, "size": size, "mode": mode, "align_corners": corners, "antialias": True},
        )
        for mode in ("bilinear", "bicubic", "lanczos")
        for corners in (True, False)
        for size in ((2, 3), (7, 3))
        if not (mode == "lanczos" and corners)
    ],
    ("interpolate", (X,), {**IMAGE, "scale_factor": (0.4, 1.7), "mode": "bicubic", "antialias": True}),
    ("interpolate", (X,), {**IMAGE, "scale_factor": 1.7, "mode": "bilinear"}),
    ("upsample", (X, 7), IMAGE),
    ("upsample_nearest", (X,), {**IMAGE, "scale_factor": 2}),
    ("upsample_bilinear", (X, (7, 3)), IMAGE),
    ("pixel_shuffle", (drawn(2, 12, 3, 4), 2), IMAGE),
    ("pixel_unshuffle", (drawn(2, 3, 4, 6), 2), IMAGE),
    ("channel_shuffle", (X, 3), IMAGE),
    ("native_channel_shuffle", (X, 3), {**IMAGE, "constant": ("0.0",)}),
    ("unfold", (X, (2, 3), 1, (1, 0), 2), IMAGE),
    ("fold", (drawn(2, 24, 6), (4, 5), (2, 3)), {**IMAGE, "stride": (2, 1)}),
]
P = {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 1)}
RANDOM = {**IMAGE, "constant": ("1._random_samples",), "_random_samples": RNG.random((2, 6, 2))}
POOLS = [
    ("max_pool1d", (X[..., 0], 2), IMAGE),
    ("max_pool2d", (X,), {**IMAGE, **P, "return_indices": True}),
    ("max_pool2d_with_indices", (X, 2), IMAGE),
    ("max_pool3d", (drawn(1, 2, 3, 4, 5), 2), {**IMAGE, "dilation": (1, 2, 1), "ceil_mode": True}),
    ("avg_pool1d", (X[..., 0], 2), IMAGE),
    ("avg_pool2d", (X,), {**IMAGE, **P, "count_include_pad": False}),
    ("avg_pool2d", (X, 2), {**IMAGE, "divisor_override": 3}),
    ("avg_pool3d", (drawn(1, 2, 3, 4, 5), 2), IMAGE),
    ("lp_pool1d", (np.abs(X[..., 0]), 3, 2), IMAGE),
    ("lp_pool2d", (X, 2.0, (2, 3)), IMAGE),
    ("lp_pool3d", (drawn(1, 2, 3, 4, 5), 2.0, 2), IMAGE),
    ("adaptive_avg_pool1d", (X[..., 0], 3), IMAGE),
    ("adaptive_avg_pool2d", (X, (3, None)), IMAGE),
    ("adaptive_avg_pool3d", (drawn(1, 2, 3, 4, 5), 2), IMAGE),
    ("adaptive_max_pool1d", (X[..., 0], 3), IMAGE),
    ("adaptive_max_pool2d", (X, 3), {**IMAGE, "return_indices": True}),
    ("adaptive_max_pool2d_with_indices", (X, (3, 2)), IMAGE),
    ("adaptive_max_pool3d", (drawn(1, 2, 3, 4, 5), 2), IMAGE),
    ("fractional_max_pool2d", (X, 2, (2, 3)), {**RANDOM, "return_indices": True}),
    ("fractional_max_pool2d_with_indices", (X, 2), {**RANDOM, "output_ratio": (0.5, 0.7)}),
    (
        "fractional_max_pool3d",
        (drawn(1, 2, 6, 5, 7), 2, 3),
        {**IMAGE, "constant": ("1._random_samples",), "_random_samples": RNG.random((1, 2, 3))},
    ),
]


def grid(*shape):
    """Positions inside, outside and far outside."""
    return RNG.uniform(-1.4, 1.4, shape) * np.where(RNG.random(shape) < 0.1, 3, 1)


GRIDS = [
    *[
        ("grid_sample", (X, grid(2, 3, 7, 2)), {**IMAGE, "mode": m, "padding_mode": p, "align_corners": a})
        for m in ("bilinear", "nearest", "bicubic")
        for p in ("zeros", "border", "reflection")
        for a in (True, False)
    ],
    *[
        ("grid_sample", (drawn(2, 3, 2, 4, 5), grid(2, 1, 2, 3, 3)), {**IMAGE, "mode": m, "padding_mode": p})
        for m, p in (("bilinear", "reflection"), ("nearest", "border"), ("bilinear", "zeros"))
    ],
]


@pytest.mark.filterwarnings("ignore:Since version 1.3.0")  # of an axis of one pixel with aligned corners
def test_affine_grid():
    """The size is (B, H, W, C) here and (B, C, H, W) in torch."""
    for theta, size in ((drawn(2, 2, 3), (2, 5, 3, 4)), (drawn(1, 3, 4), (1, 2, 3, 4, 1))):
        for corners in (True, False, None):
            ours = functional.affine_grid(jnp.asarray(theta), (size[0], *size[2:], size[1]), corners)
            theirs = torch.nn.functional.affine_grid(torch.tensor(theta), size, bool(corners))
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-14)


CASES = [*ACTIVATIONS, *LINEAR, *CONVOLUTIONS, *NORMS, *ATTENTION, *MULTIHEAD, *GRIDS, *PADS, *SPACE, *POOLS]


def named(case):
    plain = {k: v for k, v in case[2].items() if isinstance(v, bool | int | float | str | tuple)}
    return "-".join((case[0], *(f"{k}={v}" for k, v in plain.items() if k not in ("moved", "constant"))))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_same_as_torch(case):
    name, args, kwargs = case
    assert_same(name, *args, **kwargs)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_undoes_pooling(rank):
    shape = (2, 3, 4, 6, 4)[: rank + 2]
    x = torch.tensor(drawn(*shape))
    pooled, indices = getattr(torch.nn.functional, f"max_pool{rank}d")(x, 2, return_indices=True)
    theirs = getattr(torch.nn.functional, f"max_unpool{rank}d")(pooled, indices, 2)
    y, places = getattr(functional, f"max_pool{rank}d")(last(x.numpy()), 2, return_indices=True)
    ours = getattr(functional, f"max_unpool{rank}d")(y, places, 2)
    np.testing.assert_array_equal(ours, last(theirs.numpy()))


def test_training_updates_variables_and_no_array():
    """Running statistics: torch changes its tensors in place, here an nnx.Variable."""
    for name, flag in (("batch_norm", "training"), ("instance_norm", "use_input_stats")):
        mean, var = torch.tensor(drawn(6)), torch.tensor(RNG.random(6))
        ours = [nnx.BatchStat(jnp.asarray(v.numpy().copy())) for v in (mean, var)]
        y = getattr(functional, name)(last(X), *ours, **{flag: True, "momentum": 0.3})
        expected = getattr(torch.nn.functional, name)(
            torch.tensor(X), mean, var, **{flag: True, "momentum": 0.3}
        )
        np.testing.assert_allclose(y, last(expected.numpy()), rtol=1e-10, atol=1e-13)
        for a, b in zip(ours, (mean, var), strict=True):
            np.testing.assert_allclose(a[...], b.numpy(), rtol=1e-12)
        with pytest.raises(UsageError, match=r"give nnx\.Variables"):
            getattr(functional, name)(last(X), ours[0][...], ours[1][...], **{flag: True})
        with pytest.raises(UsageError, match="give running_mean and var"):
            getattr(functional, name)(last(X), None, None, **{flag: False})


def test_max_norm_scales_rows_of_a_variable():
    weight, table = torch.tensor(TABLE.copy()), nnx.Param(jnp.asarray(TABLE))
    theirs = torch.nn.functional.embedding(torch.tensor(IDS), weight, max_norm=1.0)
    np.testing.assert_allclose(functional.embedding(jnp.asarray(IDS), table, max_norm=1.0), theirs.numpy())
    np.testing.assert_allclose(table[...], weight.numpy())
    with pytest.raises(UsageError, match=r"give an nnx\.Param"):
        functional.embedding(jnp.asarray(IDS), jnp.asarray(TABLE), max_norm=1.0)


DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


@pytest.mark.parametrize("function", DROPOUTS)
def test_dropout(function):
    """Drawn from a key or an nnx.Rngs; whole channels where torch drops whole channels; never without randomness."""
    shape = {"dropout1d": (8, 5, 400), "dropout3d": (8, 2, 2, 2, 400)}.get(function, (8, 3, 3, 400))
    x, call = jnp.ones(shape), getattr(functional, function)
    assert jnp.array_equal(call(x, 0.3, training=False), x)
    y = call(x, 0.3, training=True, rngs=jax.random.key(0))
    assert jnp.array_equal(y, call(x, 0.3, training=True, rngs=jax.random.key(0)))
    assert not jnp.array_equal(y, call(x, 0.3, training=True, rngs=nnx.Rngs(1)))
    kept = y == y.max()
    assert abs(float(kept.mean()) - 0.7) < 0.05
    by_channel = jnp.broadcast_to(kept[:, :1].reshape(8, -1, 400)[:, :1], kept.reshape(8, -1, 400).shape)
    whole = jnp.array_equal(by_channel, kept.reshape(8, -1, 400))
    assert whole == (function not in ("dropout", "alpha_dropout"))
    with pytest.raises(UsageError, match="give it rngs="):
        call(x, 0.3, training=True)


def test_random_activations():
    x = jnp.asarray(drawn(1000))
    y = functional.rrelu(x, 0.1, 0.3, training=True, rngs=nnx.Rngs(0))
    slopes = (y / x)[x < 0]
    assert 0.1 <= float(slopes.min()) < 0.11 < 0.29 < float(slopes.max()) <= 0.3
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.2]))
    draws = functional.gumbel_softmax(
        jnp.broadcast_to(logits, (20000, 3)), 0.5, hard=True, rngs=jax.random.key(0)
    )
    assert jnp.abs(draws.mean(0) - jnp.exp(logits)).max() < 0.02
    assert jnp.array_equal(draws.sum(-1), jnp.ones(20000))
    soft = jax.grad(lambda v: functional.gumbel_softmax(v, hard=True, rngs=jax.random.key(0))[0])(logits)
    assert jnp.abs(soft).max() > 0
    for call in (functional.rrelu, functional.gumbel_softmax):
        with pytest.raises(UsageError, match="give it rngs="):
            call(logits, **({"training": True} if call is functional.rrelu else {}))


def test_ids_as_one_hot():
    for given in ((), (7,)):
        theirs = torch.nn.functional.one_hot(torch.tensor(IDS), *given)
        assert jnp.array_equal(functional.one_hot(jnp.asarray(IDS), *given), theirs.numpy())
    assert functional.softmax(jnp.ones(3, jnp.float32), 0, dtype=jnp.float64).dtype == jnp.float64


def test_padding_of_tokens_and_of_channels():
    """Pairs begin with torch's last axis: that of pixels, or with channels_last=False this array's own."""
    tokens = jnp.ones((2, 3, 4))
    assert functional.pad(tokens, (0, 0, 0, 5), channels_last=False).shape == (2, 8, 4)
    assert functional.pad(tokens, (0, 5)).shape == (2, 8, 4)
    assert functional.pad(tokens, (0, 0, 0, 5)).shape == (2, 3, 9)
    assert functional.pad(tokens[0], (0, 0, 0, 5)).shape == (8, 4)
    image = jnp.ones((5, 6, 3))
    assert functional.pad(image, (1, 1, 2, 2), "reflect").shape == (9, 8, 3)
    rows = functional.pad(tokens, (1, 1), "reflect", channels_last=False)
    theirs = torch.nn.functional.pad(torch.ones(2, 3, 4), (1, 1), "reflect")
    assert rows.shape == tuple(theirs.shape)


X1 = jnp.ones((2, 4, 4, 3))
REFUSED = [
    (lambda: functional.one_hot(jnp.zeros(0, int)), UsageError, "give num_classes"),
    (lambda: functional.one_hot(jnp.asarray([3]), 2), DataError, "id 3 is out of range"),
    (lambda: functional.linear(X1, jnp.ones((5, 4))), DataError, "must be (..., in) and (out, in)"),
    (lambda: functional.conv2d(X1, jnp.ones((5, 3, 2))), DataError, "must have 2 spatial axes"),
    (lambda: functional.conv2d(X1, jnp.ones((5, 4, 2, 2))), DataError, "has 3 channels last"),
    (lambda: functional.gelu(X1, "erf"), UsageError, "unknown approximation 'erf'"),
    (lambda: functional.pad(X1, (1, 2, 3)), UsageError, "must be pairs"),
    (lambda: functional.pad(X1, (1, 2, 1, 2), "mirror"), UsageError, "unknown padding mode 'mirror'"),
    (lambda: functional.pad(X1, (1, 2), "reflect", 1.0), UsageError, "value is for mode 'constant'"),
    (lambda: functional.pad(X1, (-3, -3)), DataError, "cuts off more"),
    (lambda: functional.interpolate(X1, 2, mode="nearest", antialias=True), UsageError, "antialias is for"),
    (lambda: functional.grid_sample(X1, jnp.ones((2, 3, 3, 3))), DataError, "must be (B, H, W, C)"),
    (lambda: functional.grid_sample(X1, jnp.ones((2, 3, 3, 2)), "cubic"), UsageError, "unknown mode 'cubic'"),
    (lambda: functional.affine_grid(jnp.ones((2, 2, 3)), (2, 3, 4)), UsageError, "(B, H, W, C)"),
    (
        lambda: functional.scaled_dot_product_attention(X1, X1, X1, jnp.ones((4, 4), bool), is_causal=True),
        UsageError,
        "not both",
    ),
    (
        lambda: functional.scaled_dot_product_attention(X1, X1, X1, jnp.ones((4, 4), int)),
        DataError,
        "holds booleans or floating numbers",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_typed_errors(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
