"""Data that every installation carries, in batches that follow from the seed and the step alone.

The folder `sets` is the registry: `data = "x"` in a recipe calls `load` of `x.py`. A loader's keyword arguments
are the recipe's options, except `out` and `arguments`, which it gets if it takes them.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxarch.data import sets
from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch, Source, working_dtype
from jaxarch.errors import UsageError, unknown

__all__ = ["ArraySource", "Batch", "Source", "load", "sets", "working_dtype"]


def load(name: str, *, out: Path, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> Source:
    """The data of a recipe, the same for every seed.

    Args:
        out: the folder of the run, where a tokenizer is stored.
        arguments: the model's arguments.
        options: the loader's.

    Raises:
        UsageError: unknown data or option; a package that the data needs is not installed.
        DataError: this installation does not carry the data.
    """
    known = [m.name for m in pkgutil.iter_modules(sets.__path__)]
    if name not in known:
        raise unknown("data", name, known)
    loader = _module(name).load
    context = {"out": out, "arguments": arguments}
    parameters = inspect.signature(loader).parameters
    allowed = [p for p in parameters if p not in context]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of data {name}", option, allowed)
    return loader(**{k: v for k, v in context.items() if k in parameters}, **options)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{sets.__name__}.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "jaxarch").partition(".")[0]
        if package == "jaxarch":
            raise
        raise UsageError(f"data {name} needs {package}: pip install 'jaxarch[recipes]'") from None
