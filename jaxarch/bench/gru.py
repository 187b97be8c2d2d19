"""`jaxarch bench gru`: as `lstm`, with gated recurrent units."""

from collections.abc import Iterator

from jaxarch.bench import Contest, lstm


def contests(*, compiled: bool) -> Iterator[Contest]:
    """One training step of the layer in torch and here."""
    return lstm.contests(compiled=compiled, kind="GRU")
