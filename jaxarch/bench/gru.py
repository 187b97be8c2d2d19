"""`jaxarch bench gru`: as lstm, with gated recurrent units."""

from collections.abc import Iterator
from typing import Any

from jaxarch.bench import Contest, lstm


def contests(reference: Any, *, compiled: bool) -> Iterator[Contest]:
    """One training step of the layer in torch and here."""
    return lstm.contests(reference, compiled=compiled, kind="GRU")
