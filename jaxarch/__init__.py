"""The same model in PyTorch and in Flax NNX, and the proof that it is the same.

`import jaxarch` imports neither jax nor torch. Its submodules are attributes, each imported at first use:
`jaxarch.convert.load_state_dict` needs no import of its own. torch is imported by the calls that need it.
"""

import importlib
import pkgutil
from types import ModuleType

from jaxarch.catalog import MODEL_CONFIGS, ModelFactory, create_model, list_models
from jaxarch.errors import nearest
from jaxarch.versions import check_versions

__all__ = ["MODEL_CONFIGS", "ModelFactory", "create_model", "list_models"]
__version__ = "0.1.0"


def _submodules() -> list[str]:
    """The public submodules: the folder is their registry."""
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]


def __getattr__(name: str) -> ModuleType:
    if name in (known := _submodules()):
        check_versions()
        return importlib.import_module(f"{__name__}.{name}")
    near = nearest(name, [*known, *__all__])
    hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted([*(n for n in globals() if n.startswith("__")), *__all__, *_submodules()])
