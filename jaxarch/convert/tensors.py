"""Tensors of a source that are not loaded yet: what each is, and how a part of it is read.

A reader gives one `Tensor` for each name; views of it (permuted, cut, joined, cast) are tensors again, and a read of
a part of a view reads only the bytes of that part. `jaxarch.convert.files` opens readers and writers.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from jaxarch.arrays import SUB_BYTE, pack
from jaxarch.convert.dtypes import DTYPES, dtype_name, stored_bytes
from jaxarch.errors import ConversionError, printable

Index = tuple[slice, ...]
# Bytes that a stream holds at once of one tensor.
BLOCK_BYTES = 16 << 20
_TILE = 256


class TensorInfo(NamedTuple):
    """What a tensor is: its dtype by the name that safetensors gives it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> Self:
        """The description of an array, or of anything that has a dtype of numpy and a shape.

        Raises:
            ConversionError: no file format here has its dtype.
        """
        return cls(dtype_name(value.dtype), tuple(value.shape))

    @property
    def numpy(self) -> np.dtype:
        """The dtype of numpy, in which a number of fewer bits than a byte takes one.

        Raises:
            ConversionError: an unknown dtype.
        """
        if self.dtype not in DTYPES:
            raise ConversionError(f"unknown dtype {printable(self.dtype)}; known: {', '.join(DTYPES)}")
        return DTYPES[self.dtype]

    @property
    def nbits(self) -> int:
        """The bits of one number in a file."""
        return SUB_BYTE.get(self.numpy, 8 * self.numpy.itemsize)

    @property
    def nbytes(self) -> int:
        """The size in a file, in bytes.

        Raises:
            ConversionError: numbers of fewer bits than a byte do not fill the last one.
        """
        return stored_bytes(self.numpy, math.prod(self.shape))


class Tensor:
    """A tensor that is not loaded.

    Args:
        info: its dtype and shape.
        view: an index of one slice per axis, each with start, stop and no step -> an array, which may be a view of a
            mapped file.
    """

    def __init__(
        self, info: TensorInfo, view: Callable[[Index], np.ndarray], *, is_scattered: bool = False
    ) -> None:
        self.info, self._view = info, view
        # Whether a run of it in C order is bytes from everywhere in the source.
        self.is_scattered = is_scattered

    @classmethod
    def of(cls, value: np.ndarray) -> Self:
        """An array that is in memory, as a tensor."""
        return cls(TensorInfo.of(value), lambda index: value[index])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def dtype(self) -> np.dtype:
        return self.info.numpy

    @property
    def nbytes(self) -> int:
        return self.info.nbytes

    def read(self, index: Index = ()) -> np.ndarray:
        """The elements of `index`, whose missing axes are taken whole; a contiguous array of its own."""
        return owned(self._view(full_index(index, self.shape)))

    def view(self, index: Index = ()) -> np.ndarray:
        """As `read`, but what needs no copy may be a view of the source, in any order of axes."""
        return self._view(full_index(index, self.shape))

    def blocks(self, limit: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The elements in C order, in flat arrays of at most `limit` bytes; numbers that share bytes all at once.

        Where the source is mapped and has that order, these are views of it. A source that has another order is read
        once, as a whole if it is not mapped.
        """
        if self.dtype in SUB_BYTE:
            yield self.view().reshape(-1)
        elif 0 not in self.shape:
            whole = self.view() if self.is_scattered else None
            for index in block_indices(self.shape, self.dtype.itemsize, limit):
                yield in_order(self.view(index) if whole is None else whole[index]).reshape(-1)

    def permute(self, perm: Sequence[int] | None) -> "Tensor":
        """The tensor with its axes in the order of `perm`, as `numpy.transpose`; None leaves them."""
        if perm is None:
            return self
        inverse = np.argsort(perm)
        info = TensorInfo(self.info.dtype, tuple(self.shape[p] for p in perm))

        def read(index: Index) -> np.ndarray:
            return self._view(tuple(index[i] for i in inverse)).transpose(perm)

        is_moved = list(perm) != sorted(perm)
        return Tensor(info, read, is_scattered=self.is_scattered or is_moved)

    def cut(self, index: Index) -> "Tensor":
        """The part of the tensor that `index` names; missing axes are whole."""
        outer = full_index(index, self.shape)
        info = TensorInfo(self.info.dtype, tuple(s.stop - s.start for s in outer))

        def read(inner: Index) -> np.ndarray:
            return self._view(
                tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
            )

        return Tensor(info, read, is_scattered=self.is_scattered)

    def map(self, dtype: np.dtype, function: Callable[[np.ndarray], np.ndarray]) -> "Tensor":
        """The tensor with `function`, which is elementwise and returns arrays of `dtype`, applied to what is read."""
        return Tensor(
            TensorInfo(dtype_name(dtype), self.shape),
            lambda index: np.asarray(function(self._view(index)), dtype),
            is_scattered=self.is_scattered,
        )


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one dtype joined along an axis, as `numpy.concatenate`."""
    first = tensors[0]
    bounds = list(itertools.accumulate((t.shape[axis] for t in tensors), initial=0))
    shape = (*first.shape[:axis], bounds[-1], *first.shape[axis + 1 :])

    def read(index: Index) -> np.ndarray:
        result = np.empty([s.stop - s.start for s in index], first.dtype)
        for tensor, low, high in zip(tensors, bounds, bounds[1:], strict=False):
            start, stop = max(index[axis].start, low), min(index[axis].stop, high)
            if start < stop:
                part = slice(start - low, stop - low)
                at = slice(start - index[axis].start, stop - index[axis].start)
                result[(*[slice(None)] * axis, at)] = tensor.view((*index[:axis], part, *index[axis + 1 :]))
        return result

    is_scattered = any(t.is_scattered for t in tensors)
    return Tensor(TensorInfo(first.info.dtype, shape), read, is_scattered=is_scattered)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one dtype and shape stacked along a new first axis, as `numpy.stack`."""
    first = tensors[0]

    def read(index: Index) -> np.ndarray:
        result = np.empty([s.stop - s.start for s in index], first.dtype)
        for i in range(index[0].start, index[0].stop):
            result[i - index[0].start] = tensors[i].view(index[1:])
        return result

    is_scattered = any(t.is_scattered for t in tensors)
    return Tensor(TensorInfo(first.info.dtype, (len(tensors), *first.shape)), read, is_scattered=is_scattered)


class TensorReader(Protocol):
    """One source of tensors, as a context manager; nothing of a tensor is loaded before it is read."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the source says beside its tensors."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """What each tensor is."""

    @property
    def notes(self) -> Sequence[str]:
        """A line for each thing in the source that is neither here nor among the metadata, and for each choice made."""

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """A tensor, or a part of it, as a contiguous array of its own."""

    def close(self) -> None:
        """Release the source."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class TensorWriter(Protocol):
    """One target of tensors, as a context manager; nothing is visible before `finish`, or after an error."""

    def write(self, name: str, value: np.ndarray) -> None:
        """Append a tensor, or the next part of it in C order, until it is whole."""

    def finish(self) -> None:
        """Verify what was written and make it visible.

        Raises:
            ConversionError: a tensor is missing or incomplete, or the disk holds something else than was written.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def tensors_of(reader: TensorReader) -> dict[str, Tensor]:
    """The tensors of a reader by name; of one that has `view`, with the arguments of `read`, views of its mapping."""

    def tensor(name: str, info: TensorInfo) -> Tensor:
        return Tensor(info, lambda index: view(name, index))

    view = getattr(reader, "view", reader.read)
    return {name: tensor(name, info) for name, info in reader.infos.items()}


def owned(value: np.ndarray) -> np.ndarray:
    """An array in C order with memory of its own: itself, or a copy."""
    is_own = type(value) is np.ndarray and value.flags.owndata and value.flags.c_contiguous
    if is_own and value.flags.writeable:
        return value
    return in_order(value) if not value.flags.c_contiguous else np.array(value, order="C", subok=False)


def in_order(value: np.ndarray) -> np.ndarray:
    """An array in C order: itself, or a copy, in tiles that fit the cache, which is several times as fast."""
    if value.flags.c_contiguous:
        return value
    result = np.empty(value.shape, value.dtype)
    fast = min(range(value.ndim), key=lambda axis: (value.shape[axis] == 1, abs(value.strides[axis])))
    if fast == value.ndim - 1:
        result[...] = value
        return result
    for i in range(0, value.shape[fast], _TILE):
        for j in range(0, value.shape[-1], _TILE):
            tile: Any = (*[slice(None)] * fast, slice(i, i + _TILE), ..., slice(j, j + _TILE))
            result[tile] = value[tile]
    return result


def raw_bytes(value: np.ndarray) -> np.ndarray:
    """The bytes of an array in a file: in C order, numbers of fewer bits than a byte packed.

    Raises:
        ConversionError: these do not fill the last byte.
    """
    if value.dtype in SUB_BYTE:
        stored_bytes(value.dtype, value.size)
        return pack(value)
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def full_index(index: Index, shape: Sequence[int]) -> Index:
    """One slice per axis, with start and stop.

    Raises:
        IndexError: a slice has a step, or there are more slices than axes.
    """
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} slices for {len(shape)} axes")
    slices = (*index, *[slice(None)] * (len(shape) - len(index)))
    bounds = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    if any(step != 1 for *_, step in bounds):
        raise IndexError("a tensor is read by slices without a step")
    return tuple(slice(start, max(start, stop)) for start, stop, _ in bounds)


def block_indices(shape: Sequence[int], itemsize: int, limit: int) -> Iterator[Index]:
    """Indices that together cover a shape in C order, each of at most `limit` bytes or one element."""
    axis, row = 0, math.prod(shape) * itemsize
    while axis < len(shape) and row > limit:
        row //= shape[axis]
        axis += 1
    # Axes before `axis` are taken one by one, the one before it in runs of as many rows as fit.
    if axis == 0:
        yield tuple(slice(0, n) for n in shape)
        return
    *outer, split = shape[:axis]
    run = max(1, limit // row)
    for position in itertools.product(*map(range, outer)):
        for start in range(0, split, run):
            yield (
                *(slice(i, i + 1) for i in position),
                slice(start, min(start + run, split)),
                *(slice(0, n) for n in shape[axis:]),
            )
