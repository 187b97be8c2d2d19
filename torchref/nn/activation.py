"""Activations by name."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


ACTIVATIONS: dict[str, Function] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": identity,
    "celu": F.celu,
    "selu": F.selu,
    "glu": F.glu,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "softmax": functools.partial(F.softmax, dim=-1),
    "log_softmax": functools.partial(F.log_softmax, dim=-1),
    "softmin": functools.partial(F.softmin, dim=-1),
}


class Activation(Module):
    """An activation as a layer. Any shape."""

    def __init__(self, function: str | Function):
        super().__init__()
        self.function = get_activation(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def get_activation(function: str | Function) -> Function:
    """The function of a name; a callable is returned unchanged. An unknown name is a ValueError."""
    if callable(function):
        return function
    if function not in ACTIVATIONS:
        raise ValueError(f"unknown activation {function!r}: known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[function]
