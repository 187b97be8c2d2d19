"""Containers with torch's names: a Sequential's children are 0, 1, 2, ..., a dictionary's have its keys."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from flax import nnx

from jaxarch.errors import UsageError


class _Named(nnx.List[Any]):
    """The base class of lists: children in order, each an attribute under its name, which is its index or given."""

    def __init__(self, names: Iterable[str] = (), children: Iterable[Any] = ()):
        super().__init__()
        self._names: tuple[str, ...] = ()
        for name, child in zip(names, children, strict=True):
            self._add(name, child)

    def _add(self, name: str, child: Any) -> None:
        _check_name(self, name, self._names)
        setattr(self, name, child)
        self._names = (*self._names, name)
        self._length = len(self._names)

    def _get_elem(self, key: int) -> Any:
        return getattr(self, self._names[key])

    def _set_elem(self, key: int, value: Any) -> None:
        setattr(self, self._names[key], value)

    def append(self, value: Any) -> Any:
        """Add a child under the next index; returns the container, as torch's does."""
        self._add(str(len(self)), value)
        return self

    def extend(self, values: Iterable[Any]) -> Any:
        """Append each of the values; returns the container, as torch's does."""
        for value in tuple(values):
            self.append(value)
        return self

    def insert(self, index: int, value: Any) -> Any:
        """Insert a child before an index; all are numbered anew. Returns the container, as torch's does."""
        children = list(self)
        children.insert(index, value)
        return self._renumber(children)

    def __delitem__(self, index: int | slice) -> None:
        children = list(self)
        del children[index]
        self._renumber(children)

    def _renumber(self, children: list[Any]) -> Any:
        for name in self._names:
            delattr(self, name)
        self._names, self._length = (), 0
        return self.extend(children)


class Sequential(_Named):
    """Calls its layers one after another; `Sequential(a, b)` names them `0` and `1`.

    A dictionary gives other names: `Sequential({"first": a, "second": b})`, which are attributes. Indices count the
    layers in order whatever their names; a slice is a Sequential that keeps the names.
    """

    def __init__(self, *layers: Any):
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            super().__init__(layers[0].keys(), layers[0].values())
        else:
            super().__init__(map(str, range(len(layers))), layers)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return Sequential(dict(zip(self._names[index], super().__getitem__(index), strict=True)))

    def __add__(self, other: "Sequential") -> "Sequential":
        return Sequential(*self, *other)

    def __call__(self, input: Any) -> Any:
        for layer in self:
            input = layer(input)
        return input


class ModuleList(_Named):
    """A list of layers under the names 0, 1, 2, ...; a slice is a ModuleList, numbered anew."""

    def __init__(self, modules: Iterable[Any] | None = None):
        super().__init__()
        self.extend(modules or ())

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return type(self)(found) if isinstance(index, slice) else found

    def __add__(self, other: Iterable[Any]) -> "ModuleList":
        return type(self)([*self, *other])


class ParameterList(ModuleList):
    """A list of parameters under the names 0, 1, 2, ...; arrays become parameters."""

    def __init__(self, values: Iterable[Any] | None = None):
        super().__init__(values)

    def _add(self, name: str, child: Any) -> None:
        super()._add(name, _parameter(child))

    def _set_elem(self, key: int, value: Any) -> None:
        super()._set_elem(key, _parameter(value))


class ModuleDict(nnx.Dict[Any]):
    """Layers by name, in the order in which they were given.

    Raises:
        UsageError: a name that is empty, has a dot or is one of the dictionary's own attributes; digits among others.
    """

    _pytree__has_int_keys = True  # "0" is a name like any other: paths hold it as an integer

    def __init__(self, modules: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None):
        self._names: tuple[str, ...] = ()
        self.update(modules or {})

    def __setitem__(self, key: str, value: Any) -> None:
        _check_name(self, key, self._names)
        setattr(self, key, value)
        if key not in self._names:
            self._names = (*self._names, key)

    def __getitem__(self, key: str) -> Any:
        if key not in self._names:
            raise KeyError(key)
        return getattr(self, key)

    def __delitem__(self, key: str) -> None:
        if key not in self._names:
            raise KeyError(key)
        delattr(self, key)
        self._names = tuple(name for name in self._names if name != key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ParameterDict(ModuleDict):
    """Parameters by name, in the order in which they were given; arrays become parameters. Errors: `ModuleDict`."""

    def __init__(self, parameters: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None):
        super().__init__(parameters)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _parameter(value))


def named_children(module: nnx.Module) -> list[tuple[str, Any]]:
    """The attributes of a module by name; of a container only its children, in their order."""
    if isinstance(module, _Named | ModuleDict):
        return [(name, getattr(module, name)) for name in module._names]
    return list(vars(module).items())


def _parameter(value: Any) -> Any:
    return nnx.Param(value) if isinstance(value, jax.Array) else value


def _check_name(container: nnx.Module, name: str, names: tuple[str, ...]) -> None:
    """Raise a UsageError for a name that cannot be an attribute and a key."""
    if not name or "." in name:
        raise UsageError(f"a child's name must be neither empty nor have a dot: {name!r}")
    if names and names[0].isdigit() != name.isdigit():
        raise UsageError(
            f"{names[0]!r} and {name!r} cannot be in one container: name all children by digits or none"
        )
    if name not in names and hasattr(container, name):
        raise UsageError(
            f"{type(container).__name__} has an attribute {name!r} of its own: choose another name"
        )
