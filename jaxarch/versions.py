"""Which releases of jax and flax work together: the packages that use them call `check_versions` first.

Standard library only, and no import of jax or flax: the pair that is refused cannot be imported.
"""

import re
from importlib import metadata

from jaxarch.errors import UsageError


def release(version: str) -> tuple[int, ...]:
    """The numbers of a release, without what follows them: (0, 11, 1) of 0.11.1.dev20260801+cpu."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in numbers[0].split(".")) if numbers else ()


def conflict(jax: str, flax: str) -> str | None:
    """Why this pair does not work and what to install instead, or None where it does."""
    if release(jax) >= (0, 11, 1) and release(flax) <= (0, 12, 8):
        return f"flax {flax} does not work with jax {jax}: pip install 'flax>=0.12.9'"
    return None


def check_versions() -> None:
    """Refuse an installed pair of jax and flax that is known not to work.

    Raises:
        UsageError: it is such a pair; the message says what to install.
    """
    try:
        message = conflict(metadata.version("jax"), metadata.version("flax"))
    except metadata.PackageNotFoundError:  # the import that follows says what is missing
        return
    if message:
        raise UsageError(message)
