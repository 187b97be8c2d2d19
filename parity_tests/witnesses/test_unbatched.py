"""The one mechanism for calls without a batch axis."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxarch.errors import DataError
from jaxarch.nn.unbatched import unbatched


class Recurrent:
    """A call like a recurrent layer's: the batch is the second axis of states, and of x as the layer says."""

    def __init__(self, axis):
        self.axis = axis

    @unbatched(2, {"x": lambda layer: layer.axis, "states": 1}, (lambda layer: layer.axis, 1))
    def __call__(self, x, states=None, *, scale=1):
        assert x.ndim == 3
        assert states is None or all(s.ndim == 3 for s in states)
        return x * scale, states


@pytest.mark.parametrize("axis", [0, 1])
def test_one_example_is_a_batch_of_one(axis):
    x, states = jnp.ones((4, 3)), (jnp.ones((2, 5)), jnp.ones((2, 6)))
    y, new_states = Recurrent(axis)(x, states, scale=2)
    np.testing.assert_array_equal(y, 2 * x)
    assert [s.shape for s in new_states] == [(2, 5), (2, 6)]
    assert Recurrent(axis)(x)[1] is None


def test_a_batch_is_left_alone():
    x = jnp.ones((4, 3, 2))
    assert Recurrent(0)(x)[0].shape == x.shape


@pytest.mark.parametrize("ndim", [0, 1, 4])
def test_other_numbers_of_axes_are_named(ndim):
    with pytest.raises(
        DataError, match=r"^Recurrent needs 3 axes, or 2 without a batch, x has shape \(.*\)$"
    ):
        Recurrent(0)(jnp.ones((1,) * ndim))
