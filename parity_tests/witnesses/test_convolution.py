"""Convolutions by hand, as one CPU computes them, against XLA's own, which all other programs get."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxarch.errors import DataError
from jaxarch.nn import MaxPool2d, norm
from jaxarch.nn.kernels import convolution
from jaxarch.nn.kernels.windows import Window
from jaxarch.parallel import make_mesh, parse_mesh

KINDS = {"dense": (4, 6, 1), "depthwise": (6, 6, 6), "multiplied": (6, 12, 6), "grouped": (4, 6, 2)}
# Kernel size, stride, padding, dilation: every second one is for signals too.
STEPS = ((3, 2, 1, 1), (1, 2, 1, 1), (4, 3, 0, 1), (1, 3, 0, 1), (3, 1, 1, 2), (4, 2, 1, 2))


@pytest.fixture
def mesh_of_eight():
    return make_mesh(parse_mesh("data=8"))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def case(size, kernel, stride, padding, dilation, kind):
    """Both convolutions as functions of image and kernel, and an image and a kernel."""
    inside, outside, groups = KINDS[kind]
    rank = len(size)
    # One more after the last axis: sides may be padded differently.
    pads = ((padding, padding),) * (rank - 1) + ((padding, padding + 1),)
    window = Window((stride,) * rank, pads, (dilation,) * rank, groups)
    by_hand = lambda x, w: convolution.convolve(x, w, *window)  # noqa: E731
    plain = partial(convolution.plain_output, window=window, shape=())
    return by_hand, plain, draw(2, *size, inside), draw(*(kernel,) * rank, inside // groups, outside, seed=1)


def derivatives(f, x, w):
    """The output, both gradients, a tangent, and the gradients of a gradient's norm."""

    def scalar(x, w):
        return jnp.sin(f(x, w)).sum()

    def steepness(x, w):
        return sum((g**2).sum() for g in jax.grad(scalar, (0, 1))(x, w))

    tangent = jax.jvp(f, (x, w), (x**2, w + 1))[1]
    return f(x, w), *jax.grad(scalar, (0, 1))(x, w), tangent, *jax.grad(steepness, (0, 1))(x, w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(7,), (8, 9)], ids=["signal", "image"])
def test_by_hand_is_the_convolution(size, kind):
    for kernel, stride, padding, dilation in STEPS[:: 3 - len(size)]:
        by_hand, plain, x, w = case(size, kernel, stride, padding, dilation, kind)
        ours, theirs = (jax.jit(partial(derivatives, f))(x, w) for f in (by_hand, plain))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_kernels_gradient_is_whole_in_blocks(monkeypatch):
    by_hand, plain, x, w = case((8, 9), 3, 1, 1, 1, "dense")
    x = draw(6, 8, 9, 4)
    whole = jax.grad(lambda w: jnp.sin(plain(x, w)).sum())(w)
    for room in (1, 2**9, 2**12, 2**13, 2**20):  # a row, two, an image, some images, all of them
        monkeypatch.setattr(convolution.convolution_cpu, "PATCHES", room)
        ours = jax.jit(jax.grad(lambda w: jnp.sin(by_hand(x, w)).sum()))(w)
        np.testing.assert_allclose(ours, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_batched_and_eager(kind):
    by_hand, plain, x, w = case((8, 9), 3, 2, 1, 1, kind)
    images, kernels = jnp.stack([x, 2 * x, x + 1]), jnp.stack([w, w - 1, 3 * w])
    for axes, args in (((0, 0), (images, kernels)), ((0, None), (images, w)), ((None, 0), (x, kernels))):
        ours, theirs = (jax.vmap(f, axes)(*args) for f in (by_hand, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(by_hand(x, w), plain(x, w), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_bf16_is_summed_in_float32(kind, kernel):
    by_hand, plain, x, w = case((8, 9), kernel, 1, 1, 1, kind)
    narrow = [v.astype(jnp.bfloat16) for v in (x, w)]
    exact = [v.astype(jnp.float32) for v in narrow]
    for f, g in (
        (by_hand, plain),
        *((jax.grad(lambda x, w, f=f: (f(x, w) * 2).sum(), 1) for f in (by_hand, plain)),),
    ):
        y = jax.jit(f)(*narrow)
        assert y.dtype == jnp.bfloat16
        # One rounding, of the result.
        np.testing.assert_array_equal(y, g(*exact).astype(jnp.bfloat16))


def text_for(platform, f, *args):
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_accelerators_get_convolutions(kind):
    by_hand, _, x, w = case((8, 9), 3, 1, 1, 1, kind)
    step = jax.grad(lambda x, w: (by_hand(x, w) ** 2).sum(), (0, 1))
    counts = {p: text_for(p, step, x, w).count("stablehlo.convolution") for p in ("cuda", "tpu", "cpu")}
    assert counts == {"cuda": 3, "tpu": 3, "cpu": 0 if kind == "depthwise" else 2}


def test_programs_of_several_devices_get_convolutions(mesh_of_eight):
    by_hand, _, _, w = case((8, 9), 3, 1, 1, 1, "depthwise")
    x = draw(8, 8, 9, 6)
    gradient = jax.jit(jax.grad(lambda x, w: jnp.sin(by_hand(x, w)).sum(), (0, 1)))
    alone = gradient(x, w)
    spread = jax.device_put(x, jax.NamedSharding(mesh_of_eight, P("data")))
    assert gradient.lower(spread, w).as_text().count("stablehlo.convolution") == 3
    for a, b in zip(gradient(spread, w), alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_each_device_by_itself(mesh_of_eight):
    """Within shard_map the kernel's gradient is summed over the devices, as that of JAX's own convolution is."""
    by_hand, plain, _, w = case((8, 9), 3, 1, 1, 1, "dense")
    x = draw(8, 8, 9, 4)

    @partial(jax.shard_map, mesh=mesh_of_eight, in_specs=(P("data"), P()), out_specs=P())
    def loss(x, w):
        return jax.lax.psum(jnp.sin(by_hand(x, w)).sum(), "data")

    ours = jax.jit(jax.grad(loss, (0, 1)))(x, w)
    for a, b in zip(ours, jax.grad(lambda x, w: jnp.sin(plain(x, w)).sum(), (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    by_hand, _, x, w = case((8, 9), 3, 2, 1, 1, kind)
    gradients = jax.grad(lambda x, w: by_hand(x, w).sum(), (0, 1))(x[:0], w)
    assert [g.shape for g in gradients] == [(0, *x.shape[1:]), w.shape]
    assert not gradients[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_counted(kind):
    _, plain, x, w = case((8, 9), 3, 2, 1, 1, kind)
    y = plain(x, w)
    expected = 2 * y.size * w.size // w.shape[-1]
    shapes = {
        "convolution": ((x.shape, w.shape), y.shape),
        "convolution_image_gradient": ((y.shape, w.shape), x.shape),
        "convolution_kernel_gradient": ((x.shape, y.shape), w.shape),
    }
    assert [p.name for p in convolution.PRIMITIVES] == list(shapes)
    assert [convolution.flops(name, *s) for name, s in shapes.items()] == [expected] * 3


def test_mixed_dtypes_are_refused():
    by_hand, _, x, w = case((8, 9), 3, 1, 1, 1, "dense")
    with pytest.raises(DataError, match=r"float64.*float32"):
        by_hand(x, w.astype(jnp.float32))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil"), [(2, 2, 0, False), (3, 2, 1, False), (3, 1, 1, True)]
)
def test_pooling_by_comparison_is_pooling_by_window(kernel, stride, padding, ceil):
    pool = MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    x = jnp.round(draw(2, 8, 9, 3) * 2)  # many are equal
    pads = pool._pads(x)
    ct = draw(*pool(x).shape, seed=1)
    results = []
    for f in (pool, partial(pool._by_comparison, pads=pads), partial(pool._by_window, pads=pads)):
        y, back = jax.vjp(f, x)
        results.append((y, back(ct)[0]))
    for y, gradient in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_allclose(gradient, results[0][1], rtol=1e-12, atol=1e-12)
    text = {p: text_for(p, jax.grad(lambda x: pool(x).sum()), x) for p in ("cpu", "cuda")}
    assert [("select_and_scatter" in t) for t in text.values()] == [False, True]
    wide = jax.grad(lambda x: MaxPool2d(9)(x).sum())
    assert "select_and_scatter" in text_for("cpu", wide, draw(1, 9, 9, 1))  # too many comparisons to compile
    poisoned = x.at[0, 4, 4, 1].set(jnp.nan)
    assert jnp.isnan(pool(poisoned)).sum() == jnp.isnan(pool._by_window(poisoned, pads)).sum() > 0


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 3)])
def test_the_batch_norms_derivative_is_the_derivative(axes):
    x, weight, bias = draw(2, 3, 4, 5) + 3, draw(5, seed=1), draw(5, seed=2)
    x = x if axes[0] == 0 else x.reshape(2, 1, 3, 4, 5)
    rule = partial(norm._by_batch, axes=axes, eps=1e-5)
    body = partial(norm._by_batch.fun, axes=axes, eps=1e-5)
    for f in (lambda f: f, lambda f: jax.jacfwd(f, (0, 1, 2)), lambda f: jax.jacrev(f, (0, 1, 2))):
        for a, b in zip(*(jax.tree.leaves(f(g)(x, weight, bias)) for g in (rule, body)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    check_grads(lambda *p: rule(*map(jnp.asarray, p)), (x, weight, bias), order=2)
    counts = []
    for f in (rule, body):
        gradient = jax.jit(jax.grad(lambda *p, f=f: jnp.sin(f(*p)[0]).sum(), (0, 1, 2)))
        counts.append(gradient.lower(x, weight, bias).compile().as_text().count(" reduce("))
    assert counts[0] < counts[1]
