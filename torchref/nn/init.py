"""Initialisers by name; each fills a weight in place."""

import functools
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.nn import Module, init

Layer = TypeVar("Layer", bound=Module)
Initializer = Callable[[Tensor], Tensor]

INITIALIZERS: dict[str, Initializer] = {
    "xavier": init.xavier_uniform_,
    "he": functools.partial(init.kaiming_normal_, nonlinearity="relu"),
    "kaiming": functools.partial(init.kaiming_normal_, nonlinearity="relu"),
    "he_fan_out": functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "kaiming_fan_out": functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "normal": functools.partial(init.normal_, std=0.02),
    "orthogonal": init.orthogonal_,
}


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return functools.partial(init.uniform_, a=-bound, b=bound)


def normal(std: float = 0.02) -> Initializer:
    """N(0, std^2)."""
    return functools.partial(init.normal_, std=std)


def initializer(name: str | Initializer) -> Initializer:
    """The initialiser of a name; a callable is returned unchanged. An unknown name is a ValueError."""
    if callable(name):
        return name
    if name not in INITIALIZERS:
        raise ValueError(f"unknown initialiser {name!r}: known: {', '.join(INITIALIZERS)}")
    return INITIALIZERS[name]


def initialized(layer: Layer, name: str | Initializer) -> Layer:
    """The layer with its weight drawn by an initialiser, named or given, and its bias, if any, at zero."""
    for leaf, parameter in layer.named_parameters(recurse=False):
        init.zeros_(parameter) if leaf == "bias" else initializer(name)(parameter)
    return layer


def initialize_all(model: Module, kind: type[Module], name: str | Initializer) -> None:
    """Draw the weights of every layer of a type in a model, as `initialized` does."""
    for layer in model.modules():
        if isinstance(layer, kind):
            initialized(layer, name)


def initialize_matrices(model: Module, name: str | Initializer) -> None:
    """Draw every parameter of a model that has at least two axes; vectors stay as they are."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            initializer(name)(parameter)
