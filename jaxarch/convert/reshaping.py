"""Reshaped and combined views of tensors that are not loaded: a read of a part reads the rows that hold it."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxarch.convert.tensors import Index, Tensor, TensorInfo, full_index

Shape = tuple[int, ...]


def reshape(tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor with another shape of as many elements, as `numpy.reshape` without -1."""
    blocks = _blocks(tensor.shape, shape)

    def read(index: Index) -> np.ndarray:
        if blocks is None or index == full_index((), shape):
            return np.array(tensor.read().reshape(shape)[index], order="C")
        rows: list[slice] = []  # of the old shape
        cuts: list[slice] = []  # of the flat rows
        lengths: list[int] = []
        for olds, news in blocks:
            inner, outer = math.prod(shape[i] for i in news[1:]), math.prod(tensor.shape[i] for i in olds[1:])
            start, stop = index[news[0]].start * inner, index[news[0]].stop * inner
            first, last = start // outer, -(-stop // outer)
            rows += [slice(first, last), *(slice(0, tensor.shape[i]) for i in olds[1:])]
            cuts.append(slice(start - first * outer, stop - first * outer))
            lengths.append((last - first) * outer)
        flat = tensor.read(tuple(rows)).reshape(lengths)[tuple(cuts)]
        heads = {news[0] for _, news in blocks}
        extent = [index[i].stop - index[i].start if i in heads else n for i, n in enumerate(shape)]
        inside = tuple(slice(None) if i in heads else s for i, s in enumerate(index))
        return np.array(flat.reshape(extent)[inside], order="C")

    return Tensor(TensorInfo(tensor.info.dtype, shape), read)


def combine(tensors: Sequence[Tensor], function: Callable[[list[np.ndarray]], np.ndarray]) -> Tensor:
    """A function, element by element, of tensors of one shape and dtype."""
    return Tensor(tensors[0].info, lambda index: function([t.read(index) for t in tensors]))


def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Runs of old axes and of new axes that hold the same elements; None where an axis is empty."""
    if 0 in old or 0 in new or not old or not new:
        return None
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        olds, news, a, b = [i], [j], old[i], new[j]
        while a != b:
            if a < b:
                i += 1
                olds.append(i)
                a *= old[i]
            else:
                j += 1
                news.append(j)
                b *= new[j]
        i, j = i + 1, j + 1
        blocks.append((olds, news))
    blocks[-1][0].extend(range(i, len(old)))  # axes of length 1 at the end
    blocks[-1][1].extend(range(j, len(new)))
    return blocks
