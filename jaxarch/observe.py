"""Watching the calls of a model's modules, by path, without touching the model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from jaxarch.state import join

CALL = "__call__"
# hook(path, run) -> output, where run() makes the call
Hook = Callable[[str, Callable[[], Any]], Any]


@contextlib.contextmanager
def observe(model: nnx.Module, hook: Hook) -> Iterator[None]:
    """Within the context every call of a module of `model` goes through `hook`, inside a trace too.

    Modules that a transform such as `nnx.remat` takes apart and rebuilds are other objects and pass unseen.
    """
    paths = {id(module): join(path) for path, module in nnx.iter_modules(model)}
    inside: set[int] = set()

    def wrap(call):
        def wrapped(module, *args, **kwargs):
            path = paths.get(id(module))
            if path is None or id(module) in inside:  # a subclass that calls super().__call__
                return call(module, *args, **kwargs)
            inside.add(id(module))
            try:
                return hook(path, lambda: call(module, *args, **kwargs))
            finally:
                inside.discard(id(module))

        return wrapped

    # Inherited calls are patched where they are defined, once.
    own = {}
    for cls in {base for _, module in nnx.iter_modules(model) for base in type(module).__mro__}:
        if CALL in vars(cls) and issubclass(cls, nnx.Module | nnx.List):
            own[cls] = vars(cls)[CALL]
            setattr(cls, CALL, wrap(own[cls]))
    try:
        yield
    finally:
        for cls, call in own.items():
            setattr(cls, CALL, call)
