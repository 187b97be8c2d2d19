"""Initialisers: torch's defaults and the catalog's names, with the same distributions as torch.nn.init.

Fans are those of torch's layout: weights are drawn in torch's shape and permuted by the layer, so that
fan-in and fan-out never depend on how JAX stores the array.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import unknown

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]
Layer = TypeVar("Layer", bound=nnx.Module)


def float_dtype() -> jnp.dtype:
    """float64 under x64, else float32."""
    return jnp.result_type(float)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a torch-layout weight (out, in, *kernel), as torch.nn.init computes them."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, float_dtype(), -bound, bound)


def normal(std: float = 0.02) -> Initializer:
    """N(0, std^2)."""
    return lambda key, shape: std * jax.random.normal(key, shape, float_dtype())


def torch_default(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """torch's Linear and Conv weights: kaiming_uniform with a = sqrt(5), that is U(+-1/sqrt(fan_in))."""
    return uniform(1 / math.sqrt(fans(shape)[0] or 1))(key, shape)


def xavier(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """torch.nn.init.xavier_uniform_ (Glorot and Bengio 2010)."""
    return uniform(math.sqrt(6 / sum(fans(shape))))(key, shape)


def he(mode: str = "fan_in") -> Initializer:
    """torch.nn.init.kaiming_normal_ for ReLU (He et al. 2015); mode is "fan_in" or "fan_out"."""
    if mode not in ("fan_in", "fan_out"):
        raise unknown("fan mode", mode, ("fan_in", "fan_out"))

    def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return normal(math.sqrt(2 / fans(shape)[mode == "fan_out"]))(key, shape)

    return init


def orthogonal(key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """torch.nn.init.orthogonal_ (Saxe et al. 2013) on the weight reshaped to (out, in * kernel)."""
    flat = (shape[0], math.prod(shape[1:]))
    return jax.nn.initializers.orthogonal()(key, flat, float_dtype()).reshape(shape)


INITIALIZERS: dict[str, Initializer] = {
    "xavier": xavier,
    "he": he(),
    "kaiming": he(),
    "he_fan_out": he("fan_out"),
    "kaiming_fan_out": he("fan_out"),
    "normal": normal(0.02),
    "orthogonal": orthogonal,
}


def initializer(name: str | Initializer) -> Initializer:
    """The initialiser of a name; a callable is returned unchanged.

    Raises:
        UsageError: unknown name; the known ones are listed.
    """
    if callable(name):
        return name
    if name not in INITIALIZERS:
        raise unknown("initialiser", name, INITIALIZERS)
    return INITIALIZERS[name]


def initialized(layer: Layer, name: str | Initializer, *, rngs: nnx.Rngs) -> Layer:
    """The layer with its weight drawn by an initialiser, named or given, and its bias, if any, at zero."""
    _draw(layer, name, rngs.params())
    return layer


def initialize_all(model: nnx.Module, kind: type, name: str | Initializer, *, rngs: nnx.Rngs) -> None:
    """Draw the weights of every layer of a type in a model, as `initialized` does."""
    key = rngs.params()
    layers = [layer for _, layer in nnx.iter_modules(model) if isinstance(layer, kind)]
    for i, layer in enumerate(layers):
        _draw(layer, name, jax.random.fold_in(key, i))


def initialize_matrices(model: nnx.Module, name: str | Initializer, *, rngs: nnx.Rngs) -> None:
    """Draw every parameter of a model that has at least two axes; vectors stay as they are."""
    key, count = rngs.params(), 0
    for _, layer in nnx.iter_modules(model):
        for attribute, param in sorted(vars(layer).items()):
            if isinstance(param, nnx.Param) and param.ndim > 1:
                perm = getattr(layer, "LAYOUT", {}).get(attribute)
                _set(param, perm, name, jax.random.fold_in(key, count))
                count += 1


def _draw(layer: Any, name: str | Initializer, key: jax.Array) -> None:
    _set(layer.weight, layer.LAYOUT.get("weight"), name, key)
    if getattr(layer, "bias", None) is not None:
        layer.bias.set_raw_value(jnp.zeros(layer.bias.shape, float_dtype()))


def _set(param: nnx.Param, perm: tuple[int, ...] | None, name: str | Initializer, key: jax.Array) -> None:
    """Draw a parameter in torch's shape, and store it in ours."""
    shape = param.shape if perm is None else tuple(param.shape[i] for i in _inverse(perm))
    value = initializer(name)(key, shape)
    # As raw values: under eval_shape every other way of setting one searches the whole trace.
    param.set_raw_value(value if perm is None else value.transpose(perm))


def _inverse(perm: tuple[int, ...]) -> list[int]:
    return [perm.index(i) for i in range(len(perm))]
