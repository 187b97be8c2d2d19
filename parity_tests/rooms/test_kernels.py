"""A kernel that is switched off leaves the plain computation, which gives the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxarch import nn, state
from jaxarch.errors import UsageError
from jaxarch.nn.kernels import edge_sums, switches
from jaxarch.nn.kernels.attention import fused_attention


def draw(*shape, dtype=float):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def layer_loss(layer, *args):
    """The loss of a layer as a function of its weights, and the weights."""
    layer.eval()
    graph, params, remaining = state.split(layer)
    return lambda params: (
        jax.tree.leaves(state.merge(graph, params, remaining)(*args))[0] ** 2
    ).sum(), params


def attention():
    kwargs = {"attention_type": "sparse", "max_relative_position": 2, "rngs": nnx.Rngs(0)}
    return layer_loss(nn.MultiHeadAttention(8, 2, **kwargs), draw(2, 9, 8))


def edges():
    source, target = np.random.default_rng(0).integers(0, 5, (2, 40))
    index = jnp.asarray([source, target])
    return lambda weights: (edge_sums.weighted_sum(weights, draw(5, 2, 3), index) ** 2).sum(), draw(40, 2)


def fused():
    k, v = draw(2, 2, 5, 4, dtype=jnp.float32), draw(2, 2, 5, 4, dtype=jnp.float32)
    return lambda q: (fused_attention(q, k, v, causal=True) ** 2).sum(), k + 1


LOSSES = {
    "block_attention": attention,
    "convolution": lambda: layer_loss(nn.Conv2d(3, 4, 3, padding=1, rngs=nnx.Rngs(0)), draw(2, 5, 6, 3)),
    "edge_sums": edges,
    "fused_attention": fused,
    "recurrent": lambda: layer_loss(nn.LSTM(3, 4, bidirectional=True, rngs=nnx.Rngs(0)), draw(2, 5, 3)),
}


@pytest.mark.parametrize("kernel", LOSSES)
def test_a_kernel_switched_off_leaves_the_plain_computation(kernel, monkeypatch):
    monkeypatch.setattr(edge_sums, "BLOCK", 16)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(switches, "_ENABLED", dict(switches._ENABLED))
    programs, results = [], []
    for on in (True, False):
        nn.use_kernel(kernel, on)
        loss, x = LOSSES[kernel]()
        gradient = jax.value_and_grad(loss)
        programs.append(str(jax.make_jaxpr(gradient)(x)))
        results.append(jax.jit(gradient)(x))
    assert programs[0] != programs[1]
    bound = 1e-5 if kernel == "fused_attention" else 1e-12
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=bound, atol=bound), *results)


def test_every_kernel_has_its_switch():
    # cuDNN's LSTM is off by default; what it is given is tested with the other recurrent layers.
    assert LOSSES.keys() | {"lstm_cudnn"} == switches._ENABLED.keys()
    assert [k for k, on in switches._ENABLED.items() if not on] == ["lstm_cudnn"]
    with pytest.raises(UsageError, match="did you mean 'recurrent'"):
        nn.use_kernel("recurent", False)


def test_a_plain_recurrence_differentiates_forwards(monkeypatch):
    monkeypatch.setitem(switches._ENABLED, "recurrent", False)
    loss, params = LOSSES["recurrent"]()
    tangents = {k: jnp.ones_like(v) for k, v in params.items()}
    _, slope = jax.jvp(loss, (params,), (tangents,))
    expected = sum(g.sum() for g in jax.grad(loss)(params).values())
    np.testing.assert_allclose(slope, expected, rtol=1e-10)
