"""torch = jax: every tiny variant of every architecture. No test here names one."""

import pytest
from flax import nnx

from jaxarch import catalog, parity, state


def test_pair(case):
    result = parity.check_pair(parity.Pair.from_catalog(case.name, case.variant), case.name, case.variant)
    assert result.ok, result.detail
    assert result.weights == result.roundtrip == 0
    assert result.minimum_bound < parity.BOUND


def test_tiny_is_tiny(case):
    params = state.split(nnx.eval_shape(lambda: catalog.create_model(case.name, case.variant))).params
    assert sum(p.size for p in params.values()) < 100_000


def test_every_variant_builds_without_memory(name):
    for variant in catalog.page(name).variants:
        nnx.eval_shape(lambda variant=variant: catalog.create_model(name, variant))


def test_every_architecture_has_a_case(name):
    assert catalog.page(name).cases
    with pytest.raises(catalog.UsageError, match="unknown variant"):
        catalog.create_model(name, "no_such_variant")
