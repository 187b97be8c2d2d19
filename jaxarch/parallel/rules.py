"""How a parameter is sharded follows from its path: the page's patterns, the common ones, then FSDP."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxarch.errors import UsageError
from jaxarch.parallel.mesh import AXES

# For each dim of an array a mesh axis, several, or none.
Axes = tuple[str | tuple[str, ...] | None, ...]

# Megatron's pattern (Shoeybi et al. 2019) for Linear weights of (in, out): the first matrix of a pair is sharded by
# columns, the second by rows, so that one all-reduce serves both.
TENSOR_PATTERNS: dict[str, Axes] = {
    "*attention.w_[qkv].weight": (None, "tensor"),
    "*attention.w_[qkv].bias": ("tensor",),
    "*attention.w_o.weight": ("tensor", None),
    "*.ff.0.weight": (None, "tensor"),
    "*.ff.0.bias": ("tensor",),
    "*.ff.3.weight": ("tensor", None),
    # FSDP shards rows too: columns are the features of activations, whose batch is sharded over fsdp already.
    "*word_embedding.weight": (("tensor", "fsdp"), None),
    "*lm_head.weight": (None, "tensor"),
}
# Elements; an all-gather of fewer costs more than the memory it saves.
FSDP_MINIMUM = 1024


def shardings(
    shapes: Mapping[str, Any], mesh: Mesh, exceptions: Mapping[str, Axes] | None = None
) -> dict[str, NamedSharding]:
    """The sharding of each path of `shapes` (path -> array or shape struct).

    Args:
        exceptions: glob of paths -> axes, which take precedence over TENSOR_PATTERNS.

    Raises:
        UsageError: a pattern matches nothing or names an unknown axis, or an axis does not divide its dim.
    """
    exceptions = exceptions or {}
    for pattern, axes in exceptions.items():
        if not fnmatch.filter(shapes, pattern):
            raise UsageError(f"sharding pattern {pattern!r} matches no parameter")
        if bad := [a for a in _names(axes) if a not in AXES]:
            raise UsageError(f"sharding pattern {pattern!r} names axis {bad[0]!r}; known: {', '.join(AXES)}")
    rules = {**exceptions, **{k: v for k, v in TENSOR_PATTERNS.items() if k not in exceptions}}
    return {p: NamedSharding(mesh, _spec(p, tuple(x.shape), mesh, rules)) for p, x in shapes.items()}


def _spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, Axes]) -> PartitionSpec:
    axes: list[str | tuple[str, ...] | None] = [None] * len(shape)
    for pattern, rule in rules.items():
        if fnmatch.fnmatchcase(path, pattern):
            if len(rule) != len(shape):
                raise UsageError(f"sharding of {path}: {len(rule)} axes for shape {list(shape)}")
            axes = list(rule)
            break
    for size, axis in zip(shape, axes, strict=True):
        parts = math.prod(mesh.shape[a] for a in _names((axis,)))
        if size % parts:
            name = "*".join(_names((axis,)))
            raise UsageError(f"{path}: dimension {size} is not divisible by {name}={parts}: change either")
    fsdp = mesh.shape["fsdp"]
    if fsdp > 1 and "fsdp" not in _names(axes) and math.prod(shape) >= FSDP_MINIMUM:
        free = [i for i, n in enumerate(shape) if axes[i] is None and n % fsdp == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*axes)


def _names(axes: Iterable[str | tuple[str, ...] | None]) -> list[str]:
    """The mesh axes that are named, of one dim or several."""
    return [a for entry in axes if entry is not None for a in ((entry,) if isinstance(entry, str) else entry)]


def batch_sharding(mesh: Mesh, size: int) -> NamedSharding:
    """The sharding of a batch: its first dim over data and fsdp.

    Raises:
        UsageError: the batch size is not divisible by the product of their sizes.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise UsageError(f"batch size {size} is not divisible by data*fsdp={parts}: change either")
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def describe(shapes: Mapping[str, Any], shardings: Mapping[str, NamedSharding]) -> list[dict[str, Any]]:
    """A row for each path, for tables: path, shape, mesh axis of each dim ("-": not sharded), bytes per device."""
    rows = []
    for path, x in shapes.items():
        shard = shardings[path].shard_shape(tuple(x.shape))
        spec = ", ".join(str(a) if a else "-" for a in shardings[path].spec) or "replicated"
        size = math.prod(shard) * x.dtype.itemsize
        rows.append({"path": path, "shape": list(x.shape), "spec": spec, "bytes": size})
    return rows
