"""One architecture, one file; a class is imported at first use: `from torchref.models import GAT`."""

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:
    """A class from the file of its name in snake case, else from the first file, by name, that defines it."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    own = [file for file in files if file.replace("_", "") == name.lower()]
    for file in own or (files if name[:1].isupper() else []):
        module = importlib.import_module(f"{__name__}.{file}")
        value = getattr(module, name, None)
        if getattr(value, "__module__", None) == module.__name__:
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
