"""AdaptiveLogSoftmaxWithLoss against torch's."""

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


def pair(**kwargs):
    torch.manual_seed(0)
    theirs = tnn.AdaptiveLogSoftmaxWithLoss(16, 20, [3, 9], **kwargs).double()
    ours = nn.AdaptiveLogSoftmaxWithLoss(16, 20, [3, 9], **kwargs, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("kwargs", [{}, {"div_value": 2.0, "head_bias": True}])
def test_outputs_loss_and_gradients(kwargs):
    theirs, ours = pair(**kwargs)
    x, target = np.random.default_rng(0).normal(size=(6, 16)), np.array([0, 2, 3, 8, 9, 19])
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor, torch.from_numpy(target))
    expected.loss.backward()

    def loss(layer, x):
        result = layer(x, jnp.asarray(target))
        return result.loss, result.output

    (value, output), grads = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(ours, jnp.asarray(x))
    np.testing.assert_allclose(value, expected.loss.item(), rtol=1e-14)
    np.testing.assert_allclose(output, expected.output.detach().numpy(), atol=1e-14)
    np.testing.assert_allclose(grads[1], tensor.grad.numpy(), atol=1e-14)
    np.testing.assert_allclose(grads[0].head.weight[...], theirs.head.weight.grad.numpy().T, atol=1e-14)
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in to_state_dict(ours).items()}, strict=True)


def test_log_probabilities_predictions_and_one_example():
    theirs, ours = pair()
    x = 5 * np.random.default_rng(1).normal(size=(40, 16))
    tensor, array = torch.from_numpy(x), jnp.asarray(x)
    np.testing.assert_allclose(ours.log_prob(array), theirs.log_prob(tensor).detach().numpy(), atol=1e-13)
    predictions = theirs.predict(tensor).numpy()
    assert {p < 3 for p in predictions} == {True, False}
    np.testing.assert_array_equal(ours.predict(array), predictions)
    one = theirs(tensor[0], torch.tensor(9))
    ours_one = ours(array[0], jnp.asarray(9))
    assert ours_one.output.shape == one.output.shape == ()
    np.testing.assert_allclose(ours_one.loss, one.loss.item(), rtol=1e-13)


def test_errors_name_the_culprit():
    ours = pair()[1]
    for cutoffs in ([], [3, 3], [0, 5], [5, 20]):
        with pytest.raises(UsageError, match="must be integers that rise between 0 and 20"):
            nn.AdaptiveLogSoftmaxWithLoss(16, 20, cutoffs, rngs=nnx.Rngs(0))
    with pytest.raises(DataError, match="target 20 is out of range"):
        ours(jnp.ones((1, 16)), jnp.asarray([20]))
    assert np.isnan(jax.jit(lambda t: ours(jnp.ones((1, 16)), t).loss)(jnp.asarray([20])))
    with pytest.raises(DataError, match=r"not \(2,\) and \(2, 15\)"):
        ours(jnp.ones((2, 15)), jnp.asarray([1, 2]))
