"""jit = eager: one compilation of a model's call gives what the operations one by one give, for every architecture."""

import jax
import numpy as np

from comparison import compiled
from jaxarch import catalog
from jaxarch.parity import catalog_pair


def test_jit_is_eager(name):
    pair = catalog_pair(name, catalog.page(name).cases[0])
    pair.reset(train=False)
    inputs = pair.jax_inputs()
    eager, jitted = pair.model(**inputs), compiled(pair.model)(**inputs)
    assert jax.tree.structure(eager) == jax.tree.structure(jitted)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
