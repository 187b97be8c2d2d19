"""`jaxarch bench gat`: as gcn, with graph attention of 8 heads of 8."""

from collections.abc import Iterator

from jaxarch.bench import Contest, gcn


def contests(*, compiled: bool) -> Iterator[Contest]:
    """One training step of the model here, in torchref, and with PyG's own convolutions."""
    return gcn.contests(compiled=compiled, name="gat")
