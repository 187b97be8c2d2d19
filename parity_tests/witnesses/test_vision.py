"""Vision: published sizes, torchvision's names, blocks against torch, other image sizes, bf16, layout."""

import hashlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import catalog, nn, state
from jaxarch.commands import show
from jaxarch.convert.layout import layout
from jaxarch.errors import DataError, UsageError
from jaxarch.parity import check
from torchref import nn as rnn

RNGS = nnx.Rngs(0)

# architecture, variant -> parameters, billions of multiply-adds (both as torchvision publishes them with its
# weights; EfficientNet-B2 at torchvision's 288 pixels), and the first digits of the SHA-256 of the sorted lines
# "key shape" of torchvision 0.29's own state_dict, computed once from torchvision.
PUBLISHED = {
    ("alexnet", "alexnet"): (61_100_840, 0.714, "935c1ea73a7869ee"),
    ("vgg", "vgg11"): (132_863_336, 7.609, "b11acd4f90d9643f"),
    ("vgg", "vgg16"): (138_357_544, 15.47, "ba63c2556d912509"),
    ("vgg", "vgg16_bn"): (138_365_992, 15.47, "86bad13b66635552"),
    ("vgg", "vgg19_bn"): (143_678_248, 19.632, "faf0fdbb92f698c6"),
    ("resnet", "resnet18"): (11_689_512, 1.814, "5191d63ec3989592"),
    ("resnet", "resnet34"): (21_797_672, 3.664, "f8de2a1812ef85e4"),
    ("resnet", "resnet50"): (25_557_032, 4.089, "a87e91cd6bd1f939"),
    ("resnet", "resnet101"): (44_549_160, 7.801, "dbc3ca74fffafc72"),
    ("resnet", "resnet152"): (60_192_808, 11.514, "7d486dbdc941506e"),
    ("resnet", "resnext50_32x4d"): (25_028_904, 4.23, "20929ac81dfcc94f"),
    ("resnet", "wide_resnet50_2"): (68_883_240, 11.398, "03413d59409d9728"),
    ("mobilenet_v2", "mobilenet_v2"): (3_504_872, 0.301, "e3eb10f890f74c6e"),
    ("efficientnet", "b0"): (5_288_548, 0.386, "98a6d92c040c4bca"),
    ("efficientnet", "b1"): (7_794_184, 0.687, "391b882d956123d4"),
    ("efficientnet", "b2"): (9_109_994, 1.088, "35d7528e6debccfe"),
    ("efficientnet", "b3"): (12_233_232, 1.827, "cf2f96a4b05e716c"),
    ("efficientnet", "b4"): (19_341_616, 4.394, "f55c08c98724c959"),
    ("efficientnet", "b5"): (30_389_784, 10.266, "16e12ed3d4b769a0"),
    ("efficientnet", "b6"): (43_040_704, 19.068, "63246a7d29b7e31c"),
    ("efficientnet", "b7"): (66_347_960, 37.746, "f44ee38885b1d8f5"),
}
# Those also built and counted here in JAX; the others add no kind of layer, and every one costs seconds.
BUILT = ("alexnet", "vgg16_bn", "resnet18", "resnet50", "resnet152", "mobilenet_v2", "b0", "b7")
COUNTED = ("alexnet", "vgg16_bn", "resnet50", "mobilenet_v2", "b0")


def torch_shapes(make):
    """Keys and shapes, in torch's layout, of a model of ours that is only traced."""
    model = nnx.eval_shape(make)
    leaves = state.flat(nnx.state(model, nnx.Not(nnx.RngState)))
    back = {r.torch: (leaves[r.path].shape, r.perm) for r in layout(model)}
    return {k: v if perm is None else tuple(v[i] for i in np.argsort(perm)) for k, (v, perm) in back.items()}


def checksum(lines):
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("arch", "variant"), PUBLISHED)
def test_published_sizes_and_torchvisions_names(arch, variant):
    parameters, multiply_adds, names = PUBLISHED[arch, variant]
    with torch.device("meta"):
        theirs = catalog.create_model(arch, variant, package="torchref")
    assert sum(p.numel() for p in theirs.parameters()) == parameters
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert checksum(f"{k} {v}" for k, v in shapes.items()) == names
    if variant not in BUILT:
        return
    ours = torch_shapes(lambda: catalog.create_model(arch, variant))
    assert ours == shapes
    buffers = {k for k, _ in theirs.named_buffers()}
    assert sum(math.prod(v) for k, v in ours.items() if k not in buffers) == parameters
    if variant in COUNTED:
        # `summarize` counts two FLOPs for each multiply-add.
        flops = show.summarize(arch, variant)[0].flops
        assert flops / 2e9 == pytest.approx(multiply_adds, rel=0.01)


# Parameters as torchvision publishes them; H/14 at 224 pixels, as in the paper.
TRANSFORMERS = {
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_h_14": 632_045_800,
}


@pytest.mark.parametrize("variant", TRANSFORMERS)
def test_published_sizes_of_vision_transformers(variant):
    with torch.device("meta"):
        theirs = catalog.create_model("vision_transformer", variant, package="torchref")
    assert sum(p.numel() for p in theirs.parameters()) == TRANSFORMERS[variant]
    if variant != "vit_b_16":  # the others differ from it in numbers only
        return
    ours = torch_shapes(lambda: catalog.create_model("vision_transformer", variant))
    assert ours == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert {"class_token", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.ln_1.bias"} < ours.keys()
    assert sum(map(math.prod, ours.values())) == TRANSFORMERS[variant]


def test_lite_has_googles_size():
    """EfficientNet-Lite0: 4,652,008 parameters, 407 million multiply-adds."""
    (whole, *_) = show.summarize("efficientnet", "lite")
    assert whole.parameters == 4_652_008
    assert whole.flops / 2e6 == pytest.approx(407, rel=0.06)


# torch's key -> shape, of checkpoints that exist.
def norms(*paths):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{p}.{leaf}": (n,) for p, n in paths for leaf in leaves} | {
        f"{p}.num_batches_tracked": () for p, _ in paths
    }


def convolutions(**paths):
    """`a__b=(out, in, k)` -> the weight and bias of a.b."""
    keys = {k.replace("__", "."): v for k, v in paths.items()}
    weights = {f"{k}.weight": (o, i, n, n) if n else (o, i) for k, (o, i, n) in keys.items()}
    return weights | {f"{k}.bias": (o,) for k, (o, _, _) in keys.items()}


CNN_KEYS = convolutions(
    features__0=(16, 3, 3), features__3=(32, 16, 3), classifier__1=(128, 2048, 0), classifier__3=(10, 128, 0)
)
RESNET_KEYS = {
    **convolutions(
        conv1=(64, 3, 7),
        layer1__0__conv1=(64, 64, 3),
        layer1__0__conv2=(64, 64, 3),
        layer1__1__conv1=(64, 64, 3),
        layer1__1__conv2=(64, 64, 3),
        layer2__0__conv1=(128, 64, 3),
        layer2__0__conv2=(128, 128, 3),
        layer2__0__shortcut__0=(128, 64, 1),
        layer2__1__conv1=(128, 128, 3),
        layer2__1__conv2=(128, 128, 3),
        fc=(10, 128, 0),
    ),
    **norms(*((f"layer{i}.{j}.bn{k}", 64 * i) for i in (1, 2) for j in (0, 1) for k in (1, 2))),
    **norms(("layer2.0.shortcut.1", 128)),
}


@pytest.mark.parametrize(("arch", "keys"), [("cnn", CNN_KEYS), ("small_resnet", RESNET_KEYS)])
def test_names_of_checkpoints(arch, keys):
    assert torch_shapes(lambda: catalog.create_model(arch, "base")) == keys
    with torch.device("meta"):
        theirs = catalog.create_model(arch, "base", package="torchref")
    assert {k: tuple(v.shape) for k, v in theirs.state_dict().items()} == keys


# id -> (name, arguments, keyword arguments)
BLOCKS = {
    "separable": ("DepthwiseSeparableConv", (4, 8, 2), {}),
    "attention-conv": ("AttentionConv", (4, 8, 2), {}),
    "se": ("SqueezeExcitation", (4, 2), {}),
    "cbam": ("CBAM", (4, 2, 3), {}),
    "dynamic": ("DynamicConv2d", (4, 6), {"stride": 2, "groups": 2, "kernels": 3, "temperature": 2.0}),
    "dynamic-plain": ("DynamicConv2d", (4, 4, 1), {"padding": 0, "bias": False}),
    "depth": ("StochasticDepth", (0.4,), {}),
}


class Theirs(tnn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class Ours(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize("block", BLOCKS)
def test_block(block):
    name, args, kwargs = BLOCKS[block]
    torch.manual_seed(0)
    theirs, ours = getattr(rnn, name)(*args, **kwargs), getattr(nn, name)(*args, **kwargs, rngs=RNGS)
    x = np.random.default_rng(0).normal(size=(3, 4, 7, 6))
    result = check(Theirs(theirs), Ours(ours), {"x": x}, kinds={"x": "image"}, outputs="image")
    assert result.ok, result.detail


def test_names_of_blocks():
    keys = {"depthwise.weight": (4, 1, 3, 3), "depthwise.bias": (4,)}
    keys |= {"pointwise.weight": (8, 4, 1, 1), "pointwise.bias": (8,)}
    assert torch_shapes(lambda: nn.DepthwiseSeparableConv(4, 8, rngs=nnx.Rngs(0))) == keys
    keys = {"conv.weight": (8, 4, 3, 3), "conv.bias": (8,)}
    keys |= {"attention.0.weight": (1, 4, 1, 1), "attention.0.bias": (1,)}
    assert torch_shapes(lambda: nn.AttentionConv(4, 8, rngs=nnx.Rngs(0))) == keys


def test_stochastic_depth_drops_whole_samples():
    layer = nn.StochasticDepth(0.25, rngs=RNGS)
    y = np.asarray(layer(jnp.ones((400, 2, 3, 1)))).reshape(400, 6)
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert (y == y[:, :1]).all()
    assert abs((y[:, 0] > 0).mean() - 0.75) < 0.1
    layer.eval()
    assert (np.asarray(layer(jnp.ones((4, 2)))) == 1).all()


def test_dynamic_convolution_is_the_mixture_of_its_kernels():
    layer = rnn.DynamicConv2d(4, 6, stride=2, kernels=3, temperature=0.5)
    x = torch.randn(2, 4, 7, 6)
    mix = (layer.attention(x.mean((2, 3))) / 0.5).softmax(-1)
    each = [tnn.functional.conv2d(x, w, b, 2, 1) for w, b in zip(layer.weight, layer.bias, strict=True)]
    expected = sum(m[:, None, None, None] * y for m, y in zip(mix.unbind(1), each, strict=True))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: catalog.create_model("resnet", "tiny_basic", block="botleneck"),
            "did you mean 'bottleneck'",
        ),
        (lambda: catalog.create_model("resnet", "tiny_basic", groups=2), "are for bottlenecks"),
        (lambda: catalog.create_model("vgg", "tiny", cfg=(4, "N")), "cfg holds 'N'"),
        (lambda: catalog.create_model("cnn", "tiny", image_size=(3, 9)), "3 x 9 is too small"),
        (lambda: nn.SpatialAttention(4, rngs=RNGS), "must be odd"),
        (lambda: nn.CBAM(4, rngs=RNGS), "at least the reduction 16"),
        (lambda: nn.DynamicConv2d(3, 4, groups=2, rngs=RNGS), "groups 2 must divide"),
    ],
)
def test_wrong_arguments(make, says):
    with pytest.raises(UsageError, match=says):
        nnx.eval_shape(make)


def abstract_call(name, shape, **overrides):
    """The output's shape, traced only: ours of (B, H, W, C) and torch's on the meta device."""
    model = nnx.eval_shape(lambda: catalog.create_model(name, "tiny", **overrides))
    model.eval()
    graph, params, rest = state.split(model)
    forward = lambda p, r, x: state.merge(graph, p, r)(x)  # noqa: E731
    return jax.eval_shape(forward, params, rest, jax.ShapeDtypeStruct(shape, jnp.float64)).shape


def torch_call(name, shape, **overrides):
    with torch.device("meta"):
        model = catalog.create_model(name, "tiny", package="torchref", **overrides).eval()
        return tuple(model(torch.empty(shape[0], shape[3], *shape[1:3])).shape)


@pytest.mark.parametrize("arch", ["alexnet", "vgg", "resnet", "mobilenet_v2", "efficientnet", "small_resnet"])
def test_other_sizes(arch):
    shape = (2, 97, 130, 3)
    sizes = {"input_channels": 3, "num_classes": 5}
    assert abstract_call(arch, shape, **sizes) == torch_call(arch, shape, **sizes) == (2, 5)


@pytest.mark.parametrize(
    ("arch", "size", "says"),
    [
        ("alexnet", (62, 64), "an axis of 2 is smaller than the window of 3"),
        ("alexnet", (5, 64), "an axis of 5 padded to 9 is smaller than the kernel's 11"),
        ("vgg", (3, 64), "an axis of 1 is smaller than the window of 2"),
        ("cnn", (11, 15), r"images are \(11, 15\), the model was built for image_size \(11, 13\)"),
    ],
)
def test_sizes_that_cannot_work(arch, size, says):
    shape = (2, *size, 3)
    with pytest.raises(DataError, match=says):
        abstract_call(arch, shape, input_channels=3)
    with pytest.raises((RuntimeError, ValueError)):
        torch_call(arch, shape, input_channels=3)


def small_step(dtype):
    """A model with every kind of layer of a ResNet, and a step of training it: the abstract arguments too."""
    model = nnx.eval_shape(lambda: catalog.create_model("small_resnet", "tiny", input_channels=3))
    model.train()
    graph, params, rest = state.split(model)

    def step(params, rest, x):
        def loss(params):
            merged = state.merge(graph, {k: v.astype(dtype) for k, v in params.items()}, rest)
            y = merged(x)
            return jnp.square(y.astype(jnp.float32)).mean(), (state.rest_of(merged), y)

        gradients, (after, y) = jax.grad(loss, has_aux=True)(params)
        return {k: v - 0.1 * gradients[k] for k, v in params.items()}, after, y

    wide = lambda v: jax.ShapeDtypeStruct(  # noqa: E731
        v.shape, jnp.float32 if jnp.issubdtype(v.dtype, jnp.floating) else v.dtype
    )
    return model, step, jax.tree.map(wide, (params, rest)), jax.ShapeDtypeStruct((2, 25, 30, 3), dtype)


def test_bf16_training_keeps_statistics_in_full_precision():
    _, step, (params, rest), x = small_step(jnp.bfloat16)
    after, statistics, y = jax.eval_shape(step, params, rest, x)
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in after.values()} == {jnp.dtype(jnp.float32)}
    running = {k: v.dtype for k, v in statistics.items() if "running" in k}
    assert len(running) == 10
    assert set(running.values()) == {jnp.dtype(jnp.float32)}


def test_no_activation_is_transposed():
    """Neither in the training step as it is handed to the compiler, nor in the compiled forward pass.

    (XLA's CPU backend rewrites the gradient of a convolution's weight with transposes of its own.)
    """
    model, step, (params, rest), x = small_step(jnp.float32)
    for platform in ("cpu", "cuda", "tpu"):
        text = jax.jit(step).trace(params, rest, x).lower(lowering_platforms=(platform,)).as_text()
        if platform != "cpu":
            assert text.count("stablehlo.convolution") == 6 + 6 + 5  # forward, weights, inputs
        ranks = [m.count("x") for m in re.findall(r"stablehlo\.transpose.*: \(tensor<(\S+)>\)", text)]
        assert ranks == [2]  # the last layer's weight
    model.eval()
    graph, _, _ = state.split(model)
    forward = jax.jit(lambda p, r, x: state.merge(graph, p, r)(x))
    compiled = forward.lower(params, rest, x).compile().as_text()
    assert "convolution" in compiled
    assert not re.findall(r"= \S+ transpose\(.*", compiled)
