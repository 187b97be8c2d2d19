"""Device meshes, and how parameters and batches are sharded over them."""

from jaxarch.parallel.mesh import make_mesh, parse_mesh, size
from jaxarch.parallel.rules import batch_sharding, describe, shardings

__all__ = ["batch_sharding", "describe", "make_mesh", "parse_mesh", "shardings", "size"]
