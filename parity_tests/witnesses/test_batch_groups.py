"""Batch statistics over eight devices: of the whole batch, or of each device's part as torch's DDP has them."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn as tnn

from jaxarch import convert, nn, state
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.errors import DataError, UsageError
from jaxarch.parallel import batch_sharding, make_mesh, parse_mesh

DEVICES, STEPS = 8, 2
KEYS = ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias")


def ours():
    rngs = nnx.Rngs(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False, rngs=rngs),
        nn.BatchNorm2d(3, rngs=rngs),
        nn.Flatten(),
        nn.Linear(18, 4, rngs=rngs),
    )


def theirs():
    torch.manual_seed(0)
    net = tnn.Sequential(
        tnn.Conv2d(2, 3, 3, bias=False), tnn.BatchNorm2d(3), tnn.Flatten(), tnn.Linear(18, 4)
    )
    return net.double()


def data_parallel(model, x, parts):
    """What DDP computes on `parts` ranks: the output, the mean of the ranks' gradients, rank 0's buffers."""
    replicas = [copy.deepcopy(model) for _ in range(parts)]
    outputs = []
    for replica, part in zip(replicas, x.chunk(parts), strict=True):
        y = replica(part)
        y.sin().mean().backward()
        outputs.append(y.detach())
    model.load_state_dict(replicas[0].state_dict())
    gradients = [dict(r.named_parameters()) for r in replicas]
    mean = {k: torch.stack([g[k].grad for g in gradients]).mean(0) for k in KEYS}
    return torch.cat(outputs), mean


@pytest.mark.parametrize("groups", [1, DEVICES])
def test_statistics_over_eight_devices(groups):
    other, model = theirs(), ours()
    convert.load_state_dict(model, other.state_dict())
    nn.set_batch_groups(model, groups)
    graph, params, rest = state.split(model)
    mesh = make_mesh(parse_mesh(f"data={DEVICES}"))

    @jax.jit
    def step(params, rest, x):
        def loss(params):
            merged = state.merge(graph, params, rest)
            y = merged(x)
            return jnp.sin(y).mean(), (state.rest_of(merged), y)

        gradients, (after, y) = jax.grad(loss, has_aux=True)(params)
        return gradients, after, y

    rows = layout(model)
    for i in range(STEPS):
        x = np.random.default_rng(i).normal(size=(2 * DEVICES, 2, 5, 4))
        x *= np.arange(1, 17)[:, None, None, None]  # so that the parts differ
        whole, mean = data_parallel(other, torch.from_numpy(x), groups)
        batch = jax.device_put(jnp.asarray(x.transpose(0, 2, 3, 1)), batch_sharding(mesh, len(x)))
        gradients, rest, y = step(params, rest, batch)
        np.testing.assert_allclose(y, whole, rtol=1e-10, atol=1e-12)
        back = to_torch(rows, gradients)
        for key in KEYS:
            np.testing.assert_allclose(back[key], mean[key], rtol=1e-9, atol=1e-13, err_msg=key)
    for key, kept in other.named_buffers():
        np.testing.assert_allclose(rest[key], kept, rtol=1e-12, err_msg=key)
    assert int(rest["1.num_batches_tracked"]) == STEPS


def test_groups_that_cannot_be():
    with pytest.raises(UsageError, match="at least 1, not 0"):
        nn.set_batch_groups(ours(), 0)
    with pytest.raises(UsageError, match="Linear has no batch norm"):
        nn.set_batch_groups(nn.Linear(2, 2, rngs=nnx.Rngs(0)), 2)
    norm = nn.BatchNorm1d(3, rngs=nnx.Rngs(0))
    nn.set_batch_groups(norm, 4)
    with pytest.raises(DataError, match="6 rows cannot be split into 4"):
        norm(jnp.ones((6, 3)))
    with pytest.raises(DataError, match=r"more than 1 value per channel, the input is \(4, 3\) in 4 groups"):
        norm(jnp.ones((4, 3)))
