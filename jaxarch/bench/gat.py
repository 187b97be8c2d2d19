"""`jaxarch bench gat`: as gcn, with graph attention of 8 heads of 8."""

from collections.abc import Iterator
from typing import Any

from jaxarch.bench import Contest, gcn


def contests(reference: Any, *, compiled: bool) -> Iterator[Contest]:
    """One training step of the model here, in torchref, and with PyG's own convolutions."""
    return gcn.contests(reference, compiled=compiled, name="gat")
