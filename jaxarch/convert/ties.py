"""Tied weights: tensors that repeat another, bit for bit, under a name that a model does not have."""

import re
from collections.abc import Mapping

from jaxarch.convert.tensors import Tensor


def drop_tied(
    tensors: Mapping[str, Tensor], needed: set[str], heads: str = "$^"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without those that a model lacks and that repeat one that it has; and what each of these repeats.

    Only matrices are compared: vectors of ones and zeros are the same by chance.

    Args:
        heads: a pattern of names that are left for other reasons.
    """
    extra = [k for k in tensors if k not in needed and len(tensors[k].shape) > 1 and not re.match(heads, k)]
    tied = {}
    for key in extra:
        original = next(
            (
                k
                for k in needed
                if k in tensors and same_bits(tensors[k], tensors[key]) and not _even(tensors[k])
            ),
            None,
        )
        if original is not None:
            tied[key] = original
    return {k: v for k, v in tensors.items() if k not in tied}, tied


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes; reads both, block by block, unless they are one."""
    if a is b:
        return True
    if a.info != b.info:
        return False
    return all(x.tobytes() == y.tobytes() for x, y in zip(a.blocks(), b.blocks(), strict=True))


def _even(tensor: Tensor) -> bool:
    """Whether all elements are the same, which says nothing of a tie."""
    first = None
    for block in tensor.blocks():
        item = block.dtype.itemsize
        data = block.tobytes()
        first = data[:item] if first is None else first
        if data != first * (len(data) // item):
            return False
    return True
