"""The one door to `torchref`, the reference in PyTorch: its modules, imported when they are asked for."""

import importlib
from types import ModuleType

from jaxarch.errors import require_torch

PACKAGE = "torchref"


def load(name: str, purpose: str) -> ModuleType:
    """The module `torchref.NAME`, for example "nn" or "models.mlp".

    Args:
        name: the module's name within the package.
        purpose: what it is needed for, as in "bench" or "model mlp of torchref"; the error says so.

    Raises:
        UsageError: torch is not installed.
    """
    require_torch(purpose)
    return importlib.import_module(f"torchref.{name}")
