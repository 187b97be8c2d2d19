"""Tensors onto devices: each device is given the bytes of its own shards, and nothing else is read."""

import jax
import numpy as np

from jaxarch.convert.tensors import Tensor, full_index


def place(tensor: Tensor, sharding: jax.sharding.Sharding) -> jax.Array:
    """A tensor as an array with a sharding, in the tensor's dtype, which may have 64 bits without x64 too.

    Devices that hold the same part share one read of it.
    """
    parts: dict[tuple, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = full_index(index or (), tensor.shape)
        key = tuple((s.start, s.stop) for s in bounds)
        if key not in parts:
            parts[key] = tensor.read(bounds)
        return parts[key]

    with jax.enable_x64(True):  # of this thread, in which the arrays are made
        return jax.make_array_from_callback(tensor.shape, sharding, part, dtype=tensor.dtype)
