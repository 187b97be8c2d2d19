"""What differs between the weights that a model needs and those that are there: all of it, in linear time."""

import bisect
from collections.abc import Iterable, Sequence

from jaxarch.errors import ConversionError, listed, nearest, printable

# Names beside a misspelt one in alphabetical order, from the front and from the back, that are compared with it.
_NEIGHBOURS = 4
MOST_SHOWN = 20


class Names:
    """Names among which the nearest to a misspelt one is found, whose time hardly depends on how many they are."""

    def __init__(self, names: Iterable[str]) -> None:
        self._forward = sorted(names)
        self._backward = sorted(k[::-1] for k in self._forward)

    def nearest(self, name: str) -> str | None:
        """The name that a typo in `name` most likely meant, if one is near."""
        beside = {
            *_beside(self._forward, name),
            *(k[::-1] for k in _beside(self._backward, name[::-1])),
        }
        near = nearest(name, sorted(beside), n=1) if len(name) <= 1000 else []
        return near[0] if near else None


def differences(expected: Iterable[str], actual: Iterable[str]) -> list[str]:
    """A line for each name that is missing or unexpected, with the nearest of the others for the first of them."""
    expected, actual = set(expected), set(actual)
    missing, unexpected = sorted(expected - actual), sorted(actual - expected)
    lines = []
    for kind, names, others in (
        ("missing", missing, unexpected),
        ("unexpected", unexpected, missing or expected),
    ):
        known = Names(others) if names else None
        for i, name in enumerate(names):
            near = known.nearest(name) if known is not None and i < MOST_SHOWN else None
            hint = f" (nearest: {printable(near)})" if near is not None else ""
            lines.append(f"{kind}: {printable(name)}{hint}")
    return lines


def mismatch(problems: Sequence[str]) -> ConversionError:
    """The error of weights that do not fit: the first problems and how many there are."""
    count = f"{len(problems):,} problems: " if len(problems) > 1 else ""
    return ConversionError(f"the weights do not fit the model; {count}{listed(problems, MOST_SHOWN)}")


def check_names(expected: Iterable[str], actual: Iterable[str]) -> None:
    """Compare the names of tensors.

    Raises:
        ConversionError: they differ; missing and unexpected ones are given, with the nearest of the others.
    """
    if problems := differences(expected, actual):
        raise mismatch(problems)


def _beside(names: list[str], name: str) -> list[str]:
    at = bisect.bisect_left(names, name)
    return names[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]
