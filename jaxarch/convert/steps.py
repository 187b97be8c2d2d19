"""Steps between arrays of two layouts, each with its inverse, on arrays of numpy, of JAX, and tensors not loaded."""

import abc
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxarch.convert import reshaping, tensors
from jaxarch.convert.reshaping import Shape
from jaxarch.convert.tensors import Tensor
from jaxarch.errors import ConversionError, UsageError

Arrays = tuple[Any, ...]
Shapes = tuple[Shape, ...]


class Step(abc.ABC):
    """One step from some arrays to others."""

    @abc.abstractmethod
    def shapes(self, shapes: Shapes) -> Shapes:
        """The shapes of the outputs.

        Raises:
            ConversionError: the step does not fit the inputs.
        """

    @abc.abstractmethod
    def apply(self, arrays: Arrays) -> Arrays:
        """The outputs."""

    @abc.abstractmethod
    def inverse(self) -> "Step":
        """The step back."""


@dataclass(frozen=True)
class Permute(Step):
    """The axes of each array in another order, as `numpy.transpose` takes it."""

    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.axes))):
            raise UsageError(f"permute = {list(self.axes)} is not an order of axes such as [1, 0]")

    def shapes(self, shapes: Shapes) -> Shapes:
        if wrong := [s for s in shapes if len(s) != len(self.axes)]:
            raise ConversionError(f"permute = {list(self.axes)} does not fit the shape {wrong[0]}")
        return tuple(tuple(s[a] for a in self.axes) for s in shapes)

    def apply(self, arrays: Arrays) -> Arrays:
        return tuple(_transpose(a, self.axes) for a in arrays)

    def inverse(self) -> "Permute":
        return Permute(tuple(int(i) for i in np.argsort(self.axes)))


@dataclass(frozen=True)
class Reshape(Step):
    """Axes joined, taken apart and reordered by their names, as in einops: `(h k) d -> d h k`.

    `sizes` gives the lengths that cannot be derived; 1 stands for an axis of length 1.
    """

    before: tuple[tuple[str, ...], ...]
    after: tuple[tuple[str, ...], ...]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, text: str, sizes: Mapping[str, int]) -> "Reshape":
        """The step of an expression.

        Raises:
            UsageError: it is none, or it cannot be inverted without further sizes.
        """
        sides = text.split("->")
        if len(sides) != 2:
            raise UsageError(f"reshape = {text!r} is not of the form '(h k) d -> d h k'")
        before, after = (_groups(side, text) for side in sides)
        names = [[n for group in side for n in group] for side in (before, after)]
        if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]):
            raise UsageError(f"reshape = {text!r} must name every axis once on each side")
        for group in (*before, *after):
            if len(unknown := [n for n in group if n not in sizes]) > 1:
                raise UsageError(
                    f"reshape = {text!r} cannot be inverted: give the size of {' or '.join(unknown)} in sizes"
                )
        return cls(before, after, {k: v for k, v in sizes.items() if k in names[0]})

    def shapes(self, shapes: Shapes) -> Shapes:
        return tuple(tuple(math.prod(s[n] for n in g) for g in self.after) for s in map(self._solve, shapes))

    def apply(self, arrays: Arrays) -> Arrays:
        return tuple(self._one(a) for a in arrays)

    def inverse(self) -> "Reshape":
        return Reshape(self.after, self.before, self.sizes)

    def _one(self, array: Any) -> Any:
        sizes = self._solve(tuple(array.shape))
        names, order = ([n for g in side for n in g] for side in (self.before, self.after))
        array = _reshape(array, tuple(sizes[n] for n in names))
        array = _transpose(array, tuple(names.index(n) for n in order))
        return _reshape(array, tuple(math.prod(sizes[n] for n in g) for g in self.after))

    def _solve(self, shape: Shape) -> dict[str, int]:
        """The length of every named axis."""
        if len(shape) != len(self.before):
            raise ConversionError(f"reshape from {self._text()} does not fit the shape {shape}")
        sizes = dict(self.sizes)
        for group, length in zip(self.before, shape, strict=True):
            known = math.prod(sizes[n] for n in group if n in sizes)
            open_names = [n for n in group if n not in sizes]
            if open_names and known:
                sizes[open_names[0]] = length // known
            if math.prod(sizes.get(n, 0) for n in group) != length:
                raise ConversionError(f"reshape from {self._text()} with {self.sizes} does not fit {shape}")
        return sizes

    def _text(self) -> str:
        return " ".join(f"({' '.join(g)})" if len(g) != 1 else g[0] for g in self.before)


@dataclass(frozen=True)
class Split(Step):
    """One array cut along an axis, into equal parts or into parts of these lengths."""

    axis: int
    count: int
    sizes: tuple[int, ...] | None = None

    def shapes(self, shapes: Shapes) -> Shapes:
        shape = _single(shapes)
        return tuple(_with(shape, self.axis, n) for n in self._lengths(shape))

    def apply(self, arrays: Arrays) -> Arrays:
        array = _single(arrays)
        lengths = self._lengths(tuple(array.shape))
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return tuple(_cut(array, self.axis, s, s + n) for s, n in zip(starts, lengths, strict=True))

    def inverse(self) -> "Concat":
        return Concat(self.axis, self.count, self.sizes)

    def _lengths(self, shape: Shape) -> tuple[int, ...]:
        length = _axis(shape, self.axis)
        lengths = self.sizes or (length // self.count,) * self.count
        if sum(lengths) != length:
            raise ConversionError(
                f"the axis {self.axis} of {shape} cannot be split into {self.sizes or self.count} parts"
            )
        return lengths


@dataclass(frozen=True)
class Concat(Step):
    """Arrays joined along an axis; of unequal lengths only with `sizes`, without which they could not be told apart."""

    axis: int
    count: int
    sizes: tuple[int, ...] | None = None

    def shapes(self, shapes: Shapes) -> Shapes:
        lengths = tuple(_axis(s, self.axis) for s in shapes)
        expected = self.sizes or lengths[:1] * self.count
        others = {_with(s, self.axis, 0) for s in shapes}
        if lengths != expected or len(others) != 1:
            raise ConversionError(
                f"shapes {_listed(shapes)} cannot be joined along {self.axis}: give their sizes"
            )
        return (_with(shapes[0], self.axis, sum(lengths)),)

    def apply(self, arrays: Arrays) -> Arrays:
        return (_concatenate(arrays, self.axis),)

    def inverse(self) -> "Split":
        return Split(self.axis, self.count, self.sizes)


@dataclass(frozen=True)
class Stack(Step):
    """Arrays of one shape along a new axis."""

    axis: int

    def shapes(self, shapes: Shapes) -> Shapes:
        if len(set(shapes)) != 1:
            raise ConversionError(f"shapes {_listed(shapes)} cannot be stacked")
        return ((*shapes[0][: self.axis], len(shapes), *shapes[0][self.axis :]),)

    def apply(self, arrays: Arrays) -> Arrays:
        rows = [_reshape(a, (*a.shape[: self.axis], 1, *a.shape[self.axis :])) for a in arrays]
        return (_concatenate(rows, self.axis),)

    def inverse(self) -> "Unstack":
        return Unstack(self.axis)


@dataclass(frozen=True)
class Unstack(Step):
    """The slices of one array along an axis, without that axis."""

    axis: int

    def shapes(self, shapes: Shapes) -> Shapes:
        shape = _single(shapes)
        return ((*shape[: self.axis], *shape[self.axis + 1 :]),) * _axis(shape, self.axis)

    def apply(self, arrays: Arrays) -> Arrays:
        array = _single(arrays)
        shape = (*array.shape[: self.axis], *array.shape[self.axis + 1 :])
        slices = (_cut(array, self.axis, i, i + 1) for i in range(array.shape[self.axis]))
        return tuple(_reshape(a, shape) for a in slices)

    def inverse(self) -> "Stack":
        return Stack(self.axis)


@dataclass(frozen=True)
class Sum(Step):
    """The sum of arrays, such as two biases. The parts cannot be told apart again: see `Spread`."""

    count: int

    def shapes(self, shapes: Shapes) -> Shapes:
        return (_same(shapes, "summed"),)

    def apply(self, arrays: Arrays) -> Arrays:
        return (_combine(arrays, lambda parts: sum(parts[1:], parts[0])),)

    def inverse(self) -> "Spread":
        return Spread(self.count)


@dataclass(frozen=True)
class Spread(Step):
    """Parts of a sum: the first is the sum, the others are zero."""

    count: int

    def shapes(self, shapes: Shapes) -> Shapes:
        return (_single(shapes),) * self.count

    def apply(self, arrays: Arrays) -> Arrays:
        array = _single(arrays)
        zeros = [_combine([array], _zeros) for _ in range(self.count - 1)]
        return (array, *zeros)

    def inverse(self) -> "Sum":
        return Sum(self.count)


@dataclass(frozen=True)
class Alias(Step):
    """One array for several that are the same, bit for bit; traced arrays are not compared."""

    count: int

    def shapes(self, shapes: Shapes) -> Shapes:
        return (_same(shapes, "the same"),)

    def apply(self, arrays: Arrays) -> Arrays:
        return (_combine(arrays, _first_if_same),)

    def inverse(self) -> "Copy":
        return Copy(self.count)


@dataclass(frozen=True)
class Copy(Step):
    """The same array several times."""

    count: int

    def shapes(self, shapes: Shapes) -> Shapes:
        return (_single(shapes),) * self.count

    def apply(self, arrays: Arrays) -> Arrays:
        return (_single(arrays),) * self.count

    def inverse(self) -> "Alias":
        return Alias(self.count)


def _groups(side: str, text: str) -> tuple[tuple[str, ...], ...]:
    parts = re.findall(r"\(([^()]*)\)|([A-Za-z_]\w*|1)(?=\s|$)", side.strip())
    rebuilt = " ".join(b if b else f"({a})" for a, b in parts)
    if rebuilt.split() != side.split():
        raise UsageError(f"reshape = {text!r} is not of the form '(h k) d -> d h k'")
    return tuple(() if b == "1" else (b,) if b else tuple(n for n in a.split() if n != "1") for a, b in parts)


def _single(values: Sequence[Any]) -> Any:
    if len(values) != 1:
        raise ConversionError(f"a step that takes one array was given {len(values)}")
    return values[0]


def _same(shapes: Shapes, what: str) -> Shape:
    if len(set(shapes)) != 1:
        raise ConversionError(f"shapes {_listed(shapes)} cannot be {what}")
    return shapes[0]


def _axis(shape: Shape, axis: int) -> int:
    if not 0 <= axis < len(shape):
        raise ConversionError(f"the shape {shape} has no axis {axis}")
    return shape[axis]


def _with(shape: Shape, axis: int, length: int) -> Shape:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _transpose(array: Any, axes: tuple[int, ...]) -> Any:
    return array.permute(axes) if isinstance(array, Tensor) else array.transpose(axes)


def _reshape(array: Any, shape: Shape) -> Any:
    return reshaping.reshape(array, shape) if isinstance(array, Tensor) else array.reshape(shape)


def _cut(array: Any, axis: int, start: int, stop: int) -> Any:
    index = (*(slice(None),) * axis, slice(start, stop))
    return array.cut(index) if isinstance(array, Tensor) else array[index]


def _listed(shapes: Shapes) -> str:
    distinct = list(dict.fromkeys(shapes))
    return ", ".join(map(str, distinct[:3])) + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")


def _concatenate(arrays: Sequence[Any], axis: int) -> Any:
    if isinstance(arrays[0], Tensor):
        return tensors.concatenate(arrays, axis)
    return (jnp if any(isinstance(a, jax.Array) for a in arrays) else np).concatenate(arrays, axis)


def _combine(arrays: Sequence[Any], function: Callable[[list[Any]], Any]) -> Any:
    return reshaping.combine(arrays, function) if isinstance(arrays[0], Tensor) else function(list(arrays))


def _zeros(arrays: list[Any]) -> Any:
    return (jnp if isinstance(arrays[0], jax.Array) else np).zeros_like(arrays[0])


def _first_if_same(arrays: list[Any]) -> Any:
    """The first of arrays that are the same, bit for bit.

    Raises:
        ConversionError: they differ.
    """
    concrete = [np.asarray(a) for a in arrays if not isinstance(a, jax.core.Tracer)]
    if len({a.tobytes() for a in concrete}) > 1:
        raise ConversionError("tensors that an alias declares to be the same differ")
    return arrays[0]
