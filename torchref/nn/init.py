"""Initialisers by name; each fills a weight in place."""

import functools
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor
from torch.nn import Module, init

Layer = TypeVar("Layer", bound=Module)

INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier": init.xavier_uniform_,
    "he": functools.partial(init.kaiming_normal_, nonlinearity="relu"),
    "kaiming": functools.partial(init.kaiming_normal_, nonlinearity="relu"),
    "he_fan_out": functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "kaiming_fan_out": functools.partial(init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    "normal": functools.partial(init.normal_, std=0.02),
    "orthogonal": init.orthogonal_,
}


def initializer(name: str) -> Callable[[Tensor], Tensor]:
    """The initialiser of a name. An unknown name is a ValueError."""
    if name not in INITIALIZERS:
        raise ValueError(f"unknown initialiser {name!r}: known: {', '.join(INITIALIZERS)}")
    return INITIALIZERS[name]


def initialized(layer: Layer, name: str) -> Layer:
    """The layer with its weight drawn by the named initialiser and its bias, if any, at zero."""
    for leaf, parameter in layer.named_parameters(recurse=False):
        init.zeros_(parameter) if leaf == "bias" else initializer(name)(parameter)
    return layer
