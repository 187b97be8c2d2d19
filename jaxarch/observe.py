"""Observing the calls of a model's modules, by path, without changing the model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from jaxarch.state import join

CALL = "__call__"
Call = Callable[..., Any]
# hook(path, run) -> output, where run() calls the module
Hook = Callable[[str, Callable[[], Any]], Any]


@contextlib.contextmanager
def observe(model: nnx.Module, hook: Hook) -> Iterator[None]:
    """Within the context every call of a module of `model` goes through `hook`, inside a trace too.

    Modules that a transform such as `nnx.remat` splits and merges again are other objects and are not observed.
    """
    paths = {id(module): join(path) for path, module in nnx.iter_modules(model)}
    active: set[int] = set()

    def wrap(call: Call) -> Call:
        def wrapped(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(module))
            if path is None or id(module) in active:  # a subclass that calls super().__call__
                return call(module, *args, **kwargs)
            active.add(id(module))
            try:
                return hook(path, lambda: call(module, *args, **kwargs))
            finally:
                active.discard(id(module))

        return wrapped

    # Inherited calls are patched where they are defined, once.
    originals: dict[type, Call] = {}
    for cls in {base for _, module in nnx.iter_modules(model) for base in type(module).__mro__}:
        if CALL in vars(cls) and issubclass(cls, nnx.Module | nnx.List):
            originals[cls] = vars(cls)[CALL]
            setattr(cls, CALL, wrap(originals[cls]))
    try:
        yield
    finally:
        for cls, call in originals.items():
            setattr(cls, CALL, call)
