"""Attributes of a layer that are computed from its other arrays: the classes of such layers.

A layer whose weight is computed has a class of its own, made once for each recipe, with a property in the
parameter's place: layers read `self.weight[...]` and need not know.
"""

import functools
import types
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn.module import from_torch_layout


@dataclass(frozen=True)
class Computed(ABC):
    """How one attribute of a layer is computed. Arrays here have torch's layout."""

    name: str

    @abstractmethod
    def value(self, layer: Any) -> Float[Array, "*shape"]:
        """The attribute's value."""

    def assign(self, layer: Any, value: Float[Array, "*shape"]) -> None:
        """Set what the value is computed from."""
        raise UsageError(f"{self.name} of {type(layer).__name__} is computed and cannot be set")

    def before_call(self, layer: Any) -> None:
        """What is done before each call of the layer: nothing, unless a recipe says so."""
        return


class _Mark:
    """On the classes that `compute` makes: the class they come from, and how each attribute is computed."""

    _base: ClassVar[type]
    _computed: ClassVar[tuple[Computed, ...]]


@functools.cache
def _class_of(base: Any, computed: tuple[Computed, ...]) -> type:
    """The class of layers of type `base` with computed attributes."""

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for each in computed:
            each.before_call(self)
        return base.__call__(self, *args, **kwargs)

    members: dict[str, Any] = {c.name: _property(c, base) for c in computed}
    members |= {"_base": base, "_computed": computed, "__call__": call, "__module__": base.__module__}
    return types.new_class(
        f"Parametrized{base.__name__}", (base, _Mark), exec_body=lambda n: n.update(members)
    )


def _property(computed: Computed, base: Any) -> property:
    perm = base.LAYOUT.get(computed.name)

    def get(layer: Any) -> Array:
        return from_torch_layout(computed.value(layer), perm)

    def assign(layer: Any, value: Array) -> None:
        computed.assign(layer, to_torch_layout(value, perm))

    return property(get, assign)


def to_torch_layout(value: Array, perm: tuple[int, ...] | None) -> Array:
    """An array of ours in torch's layout."""
    return value if perm is None else jnp.transpose(value, [perm.index(i) for i in range(len(perm))])


def taken(layer: Any, name: str) -> nnx.Variable:
    """The parameter of a layer under a name, which is then no longer its attribute.

    Raises:
        UsageError: the layer has no such parameter.
    """
    variable = vars(layer).get(name)
    if not isinstance(variable, nnx.Variable):
        raise UsageError(f"{type(layer).__name__} has no parameter {name!r}")
    delattr(layer, name)
    return variable


def in_torch_layout(layer: Any, name: str) -> Float[Array, "*shape"]:
    """The value of a layer's parameter in torch's layout.

    Raises:
        UsageError: the layer has no such parameter.
    """
    variable = vars(layer).get(name)
    if not isinstance(variable, nnx.Variable):
        raise UsageError(f"{type(layer).__name__} has no parameter {name!r}")
    return to_torch_layout(variable[...], layer.LAYOUT.get(name))


def recipes(layer: Any) -> tuple[Computed, ...]:
    """How each computed attribute of a layer is computed."""
    return layer._computed if isinstance(layer, _Mark) else ()


def compute(layer: Any, computed: Computed) -> None:
    """Let an attribute of a layer, which no longer has it, be computed."""
    base = layer._base if isinstance(layer, _Mark) else type(layer)
    _become(layer, base, (*recipes(layer), computed))


def restore(layer: Any, name: str, variable: nnx.Variable) -> None:
    """Let a computed attribute be the variable, of which the value has our layout, again."""
    _become(layer, layer._base, tuple(c for c in recipes(layer) if c.name != name))
    setattr(layer, name, variable)


def _become(layer: Any, base: type, computed: tuple[Computed, ...]) -> None:
    object.__setattr__(layer, "__class__", _class_of(base, computed) if computed else base)
