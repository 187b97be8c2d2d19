"""One architecture, one file; a class is imported at first use: `from torchref.models import GAT`."""

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:
    """A class from the file of its name in snake case, else from the first file, by name, that defines it; a file."""
    files = [m.name for m in pkgutil.iter_modules(__path__)]
    if name in files:
        return importlib.import_module(f"{__name__}.{name}")
    own = [file for file in files if file.replace("_", "") == name.lower()]
    for file in own or ([] if name.startswith("_") else files):
        module = importlib.import_module(f"{__name__}.{file}")
        home = getattr(getattr(module, name, None), "__module__", "")
        if home == module.__name__ or home.startswith("torchref.nn."):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
