"""Layers that their first input completes, against torch's and against the layers that they become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

import torch_samples
from jaxarch import nn, state
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.errors import ConversionError, UsageError

# module -> arguments, and torch's shape of the input
CASES = {
    "LazyLinear": ((5,), (3, 4)),
    "LazyConv2d": ((6, (2, 3), 1, 1, 1, 2, False), (2, 4, 5, 6)),
    "LazyConvTranspose1d": ((6, 3, 2, 1, 1), (2, 4, 5)),
    "LazyBatchNorm1d": ((1e-3, None), (3, 4)),
    "LazyBatchNorm2d": ((1e-3,), (2, 4, 3, 5)),
    "LazyBatchNorm3d": ((1e-3, 0.2, False), (2, 4, 3, 2, 5)),
    "LazyInstanceNorm1d": ((), (2, 4, 5)),
    "LazyInstanceNorm2d": ((1e-3, 0.3), (2, 4, 5, 3)),
    "LazyInstanceNorm3d": ((1e-3, 0.3, False), (2, 4, 5, 3, 2)),
}


@pytest.mark.parametrize("mode", torch_samples.MODES)
@pytest.mark.parametrize("module", CASES)
def test_as_torch(module, mode):
    """Evaluated before the first input too, batch norms then normalise by their initial statistics."""
    args, shape = CASES[module]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=shape))
    sample = torch_samples.Sample(module, 0, args, {}, (x,), {})
    assert not (result := torch_samples.compared(sample, mode)), result


@pytest.mark.parametrize("module", [k for k in vars(nn) if k.startswith("Lazy")])
def test_becomes_the_layer_for_good(module):
    lazy = getattr(nn, module)(
        *((6, 2) if "Conv" in module else (6,) if "Linear" in module else ()), rngs=nnx.Rngs(0)
    )
    assert not [r for r in nnx.iter_graph(lazy) if isinstance(r[1], nnx.Param)]
    rank = int(module[-2]) if module[-1] == "d" else 0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *(3, 4, 5)[:rank], 6)))
    y = lazy(x)
    assert type(lazy) is getattr(nn, module.removeprefix("Lazy"))
    lazy.eval()
    assert lazy(x).shape == y.shape
    graph, params, rest = state.split(lazy)
    assert jax.jit(lambda params: state.merge(graph, params, rest)(x))(params).shape == y.shape


def test_inside_a_model():
    """Names and layouts are torch's; each layer draws its own weights."""
    ours = nn.Sequential(nn.LazyConv2d(3, 2, rngs=(r := nnx.Rngs(0))), nn.Flatten(), nn.LazyLinear(4, rngs=r))
    theirs = tnn.Sequential(tnn.LazyConv2d(3, 2), tnn.Flatten(), tnn.LazyLinear(4)).double()
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 6))
    theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    with pytest.raises(ConversionError, match=r"^0 is a LazyConv2d .* call the model once"):
        load_state_dict(ours, theirs.state_dict())
    with pytest.raises(UsageError, match="outside jit"):
        jax.eval_shape(ours, jnp.asarray(x))
    ours(jnp.asarray(x))
    assert {k: v.shape for k, v in to_state_dict(ours).items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    load_state_dict(ours, theirs.state_dict())
    expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)
