"""torch = jax: every tiny variant of every architecture. No test here names one."""

import pytest
from flax import nnx

from jaxarch import catalog, parity


def test_pair(case):
    pair = parity.catalog_pair(case.name, case.variant)
    assert sum(p.numel() for p in pair.torch.parameters()) < 100_000
    result = parity.check_pair(pair, case.name, case.variant)
    assert result.ok, result.detail
    assert result.weights == result.roundtrip == 0
    assert result.minimum_bound < parity.BOUND


def test_large_variants_build_without_memory(name):
    """The first and the last that are no cases; those between differ from them in numbers."""
    page = catalog.page(name)
    large = [v for v in page.variants if v not in page.cases]
    for variant in dict.fromkeys((*large[:1], *large[-1:])):
        nnx.eval_shape(lambda variant=variant: catalog.create_model(name, variant))


@pytest.mark.slow
def test_every_variant_builds_without_memory(name):
    for variant in catalog.page(name).variants:
        nnx.eval_shape(lambda variant=variant: catalog.create_model(name, variant))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_pair_with_other_draws(case, seed):
    """Other weights, inputs, masks, cotangents and targets than `test_pair`'s.

    Not seed 1: it revives two codes of a codebook from one row, and which of two equal codes is nearest is then
    decided by the rounding of each framework's matrix product.
    """
    result = parity.check_pair(parity.catalog_pair(case.name, case.variant, seed), case.name, case.variant)
    assert result.ok, result.detail


def test_every_architecture_has_a_case(name):
    assert catalog.page(name).cases
    with pytest.raises(catalog.UsageError, match="unknown variant"):
        catalog.create_model(name, "no_such_variant")
