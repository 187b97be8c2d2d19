"""Strided arrays in files: only what is asked for is read, in pieces, by offset and never by mapping.

A mapped file that somebody truncates kills the process that reads it; a read that comes short is an error.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from jaxarch.errors import ConversionError

# What is read at once of an array whose numbers are not one run.
PIECE_BYTES = 8 << 20


def read_exactly(file: int, start: int, target: np.ndarray, name: str) -> None:
    """Fill a contiguous array with the bytes of an open file from `start` on.

    Raises:
        ConversionError: the file, called `name`, ends before.
    """
    view = memoryview(target.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        # Linux reads at most 2 GiB at once.
        count = os.preadv(file, [view[done : done + (1 << 30)]], start + done)
        if count == 0:
            raise ConversionError(f"{name} ends at byte {start + done:,}; it was truncated")
        done += count


def read_strided(
    file: int, start: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype, name: str
) -> np.ndarray:
    """An array whose element at index i lies at byte start + i . strides; the result is contiguous.

    Args:
        file: a descriptor; name: of the file, for errors.
        strides: in bytes, none negative.

    Raises:
        ConversionError: the file ends before the last element.
    """
    result = np.empty(tuple(shape), dtype)
    if result.size:
        _fill(file, start, result, list(strides), name)
    return result


def extent(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """The bytes from the first element of a strided array to the end of the last; 0 if it has none."""
    if 0 in shape:
        return 0
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + itemsize


def contiguous(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The strides in bytes of an array in C order."""
    return tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _fill(file: int, start: int, result: np.ndarray, strides: list[int], name: str) -> None:
    shape = result.shape
    span = extent(shape, strides, result.itemsize)
    if span == result.nbytes and result.flags.c_contiguous and _dense(shape, strides, result.itemsize):
        read_exactly(file, start, result, name)
        return
    if span <= PIECE_BYTES:
        raw = np.empty(span, np.uint8)
        read_exactly(file, start, raw, name)
        result[...] = np.ndarray(shape, result.dtype, raw, strides=strides)
        return
    # Along the axis of the largest step, as many indices at once as fit.
    axis = max((i for i in range(len(shape)) if shape[i] > 1), key=lambda i: strides[i])
    rest = span - (shape[axis] - 1) * strides[axis]
    run = max(1, min(shape[axis] - 1, (PIECE_BYTES - rest) // strides[axis] + 1 if rest < PIECE_BYTES else 1))
    for first in range(0, shape[axis], run):
        part = result[(slice(None),) * axis + (slice(first, first + run),)]
        _fill(file, start + first * strides[axis], part, strides, name)


def _dense(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether the strides are those of C order, but for axes of size 1."""
    expected = contiguous(shape, itemsize)
    return all(n == 1 or s == e for n, s, e in zip(shape, strides, expected, strict=True))
