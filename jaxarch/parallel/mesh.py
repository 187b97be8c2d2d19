"""The device mesh: the batch is sharded over `data` and `fsdp`, parameters over `fsdp`, matrices over `tensor`."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxarch.errors import UsageError, unknown

AXES = ("data", "fsdp", "tensor")


def parse_mesh(text: str) -> dict[str, int]:
    """`"data=2,fsdp=2,tensor=2"` as axis -> size; axes that are not named have size 1.

    Raises:
        UsageError: an unknown axis, one named twice, or a size that is not a positive integer.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        axis, _, value = item.partition("=")
        if axis not in AXES:
            raise unknown("mesh axis", axis, AXES)
        if not value.isdecimal() or int(value) < 1 or axis in sizes:
            raise UsageError(f"mesh {item!r}: write each axis once with a positive size, for example data=2")
        sizes[axis] = int(value)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def size(axes: Mapping[str, int]) -> int:
    """The number of devices of a mesh."""
    return math.prod(axes.values())


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices, axes in the order data, fsdp, tensor.

    Raises:
        UsageError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if size(axes) != len(devices):
        shape = ",".join(f"{k}={v}" for k, v in axes.items())
        raise UsageError(f"mesh {shape} takes {size(axes)} devices, there are {len(devices)}: change an axis")
    sizes = tuple(axes[axis] for axis in AXES)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
