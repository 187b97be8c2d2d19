"""Calls without a batch axis: one decorator for every layer that takes a batch or one example of it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxarch.errors import DataError

Call = TypeVar("Call", bound=Callable[..., Any])
Number = int | Callable[[Any], int]


def unbatched(
    dims: Number, axes: Mapping[str, Number] | None = None, outputs: Number | tuple[Number, ...] = 0
) -> Callable[[Call], Call]:
    """Let a layer's call, which is written for batches, take one example too, as torch's layers do.

    If the first argument has `dims` axes, it is an example: it and the other arguments named in `axes` get a
    batch axis of 1, the call runs, and its outputs lose theirs. With one axis more the call runs unchanged.

    Args:
        dims: how many axes the first argument of one example has.
        axes: the position of the batch axis by argument; the first argument's is 0 unless it is named here. An
            argument may be None, or a tuple of arrays.
        outputs: the position of the batch axis of each output, the last of them for all that follow. An output
            may be None, or a tuple of arrays.

    Every number may be a function of the layer, for those that its constructor decides.

    Raises:
        DataError: in the call, the first argument has any other number of axes.
    """

    def decorate(call: Call) -> Call:
        signature = inspect.signature(call)
        first = list(signature.parameters)[1]
        positions = {first: 0, **(axes or {})}

        @functools.wraps(call)
        def run(layer: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(layer, *args, **kwargs).arguments
            x, needed = arguments[first], _of(dims, layer)
            if jnp.ndim(x) == needed + 1:
                return call(layer, *args, **kwargs)
            if jnp.ndim(x) != needed:
                raise DataError(
                    f"{type(layer).__name__} needs {needed + 1} axes, or {needed} without a batch, "
                    f"{first} has shape {jnp.shape(x)}"
                )
            for name, axis in positions.items():
                if name in arguments:
                    arguments[name] = _each(jnp.expand_dims, arguments[name], _of(axis, layer))
            result = call(**arguments)
            each = outputs if isinstance(outputs, tuple) else (outputs,)
            if not isinstance(result, tuple):
                return _each(jnp.squeeze, result, _of(each[0], layer))
            padded = each + each[-1:] * len(result)
            return tuple(_each(jnp.squeeze, r, _of(a, layer)) for r, a in zip(result, padded, strict=False))

        return run  # type: ignore[return-value]

    return decorate


def _of(number: Number, layer: Any) -> int:
    return number(layer) if callable(number) else number


def _each(function: Callable[[jax.Array, int], jax.Array], values: Any, axis: int) -> Any:
    """A function of each array of a tree, and of None nothing."""
    return jax.tree.map(lambda v: function(v, axis), values)
