"""Whole training runs between PyTorch and JAX: weights, optimizer state and the step they belong to."""

from jaxarch.versions import check_versions

check_versions()
