"""Errors a user can cause. Each is one line that names the culprit and the remedy."""

import difflib
import importlib
import itertools
from collections.abc import Iterable
from types import ModuleType


class JaxarchError(Exception):
    """Something went wrong that the user can fix; the command line prints it and exits with `status`."""

    status = 1


class UsageError(JaxarchError, ValueError):
    """The call itself is wrong: an unknown name, a value out of range."""

    status = 2


class ConversionError(JaxarchError, ValueError):
    """Two sets of weights do not correspond."""


class CheckpointError(JaxarchError):
    """A checkpoint is missing, damaged or could not be written."""


class DataError(JaxarchError, ValueError):
    """Input data is missing or does not fit the model."""


class DivergenceError(JaxarchError):
    """Training produced a NaN or an infinity."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The names in `known` that a typo in `name` most likely meant, best first."""

    def closeness(k: str) -> tuple[float, int]:
        same_start = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, k, strict=False))
        return difflib.SequenceMatcher(None, name, k).ratio(), len(list(same_start))

    return [k for k in sorted(known, key=closeness, reverse=True) if closeness(k)[0] >= 0.5][:n]


def listed(problems: Iterable[str], limit: int = 20) -> str:
    """Problems joined to one line: the first `limit`, then how many more; what does not print is escaped."""
    problems = list(problems)
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(printable(p) for p in problems[:limit]) + more


def printable(text: object, limit: int = 200) -> str:
    """A text from a file for an error's line: at most `limit` characters, control characters escaped."""
    line = str(text)
    line = line if len(line) <= limit else f"{line[: limit - 12]}... ({len(line):,} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def unknown(what: str, name: object, known: Iterable[object], more: Iterable[str] = ()) -> UsageError:
    """An error for a name that is not among the `known` ones; suggests the nearest, of `more` unlisted ones too."""
    names = [str(k) for k in known]
    near = nearest(str(name), [*names, *more])
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UsageError(f"unknown {what} {str(name)!r}: {hint}known: {', '.join(names) or 'none'}")


def require(package: str, extra: str, purpose: str) -> ModuleType:
    """Import a package that comes with one of jaxarch's extras.

    Args:
        package: the module's name; of a submodule with its dots, as in "matplotlib.figure".
        extra: the extra of pyproject.toml that installs it.
        purpose: what needs it; the message begins with it.

    Raises:
        UsageError: the package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        name = package.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != name:
            raise  # it is installed, and lacks something itself
        raise UsageError(f"{purpose} needs {name}: pip install 'jaxarch[{extra}]'") from None


def require_torch(purpose: str) -> ModuleType:
    """Import and return torch, or raise a UsageError that says how to get it."""
    return require("torch", "torch", purpose)
