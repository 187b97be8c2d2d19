"""Gradients of maxima, where the operand is fused into them: XLA may round it twice and compare the two.

The derivative of `jnp.max` goes where the operand equals the maximum. On the CPU XLA computes an operand such as
a layer norm once within the reduction and once more within the comparison, with other roundings, and the gradient
of places where they differ is lost: half of it, for `jnp.max` of the operand below, with jax 0.10.2. Maxima must
therefore be taken by index, or of an operand XLA has to store.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxarch import nn
from jaxarch.losses import mined_triplet_loss
from jaxarch.parity.jax_side import COMPILER_OPTIONS

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(3, 8, 12)))
WEIGHTS = [jnp.asarray(RNG.normal(size=s)) for s in ((12, 12), (12,), (12,))]
MASK = jnp.asarray(np.arange(8) < np.array([[8], [5], [1]]))
NODES = jnp.asarray(np.arange(24) // 8)
LABELS = jnp.asarray([0, 0, 1, 1, 2, 2, 3, 3])


def operand(weights):
    """A residual block's layer norm, the case that is hit."""
    w, gamma, beta = weights
    h = X + X @ w
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-5) * gamma + beta


def scalar(reduce, h):
    y = reduce(h)
    return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum()


def lost(reduce):
    """How wrong the gradient is with the operand fused; right is that with the operand stored."""
    both = jax.grad(lambda weights: scalar(reduce, operand(weights)))
    fused = jax.jit(both, compiler_options=COMPILER_OPTIONS)(WEIGHTS)
    stored, back = jax.vjp(jax.jit(operand), WEIGHTS)
    right = back(jax.jit(jax.grad(functools.partial(scalar, reduce)))(stored))[0]
    a, b = (np.concatenate([np.ravel(x) for x in g]) for g in (fused, right))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def pooling(h):
    return nn.Pooling("max", 12, rngs=nnx.Rngs(0))(h, MASK)


REDUCTIONS = {
    "first_max": lambda h: nn.first_max(h, 1),
    "first_max of channels": lambda h: nn.first_max(h, -1),
    "Pooling": pooling,
    "segment_max": lambda h: nn.segment_max(h.reshape(24, 12), NODES, 3, MASK.reshape(-1)),
    "global_max_pool": lambda h: nn.global_max_pool(h.reshape(24, 12), NODES, 3),
    "MaxPool1d": nn.MaxPool1d(3, 2, 1),
    "MaxPool1d, dilated": nn.MaxPool1d(3, 1, 1, 2),
    "AdaptiveMaxPool2d": lambda h: nn.AdaptiveMaxPool2d((2, 3))(h.reshape(3, 4, 2, 12).repeat(2, 2)),
    "hard triplets": lambda h: mined_triplet_loss(h[0], LABELS)[None],
    "semi-hard triplets": lambda h: mined_triplet_loss(h[0], LABELS, mining="semi_hard")[None],
}


@pytest.mark.parametrize("which", REDUCTIONS)
def test_a_fused_operand_keeps_its_gradient(which):
    assert lost(REDUCTIONS[which]) < 1e-13
