"""torch.nn.utils.weight_norm and spectral_norm: the older functions, whose arrays are the layer's own.

The keys are `weight_g weight_v` and `weight_orig weight_u weight_v`. `dim` counts the axes of torch's layout of the
weight, of which the first is the outputs; the arrays are stored in it.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn import init
from jaxarch.nn.module import Buffer, from_torch_layout
from jaxarch.nn.utils.computed import Computed, compute, in_torch_layout, recipes, restore, taken
from jaxarch.nn.utils.parametrizations import matrix_of, normalize, norms_except, outputs_dim

Layer = TypeVar("Layer", bound=nnx.Module)


@dataclass(frozen=True)
class _WeightNorm(Computed):
    """weight_g * weight_v / its norms along `dim`."""

    dim: int | None

    def value(self, layer: Any) -> Float[Array, "*shape"]:
        norms, weight = (getattr(layer, f"{self.name}_{part}")[...] for part in "gv")
        return weight * (norms / norms_except(weight, self.dim))


@dataclass(frozen=True)
class _SpectralNorm(Computed):
    """weight_orig / its largest singular value, by power iteration once for each call in train mode."""

    n_power_iterations: int
    eps: float
    dim: int

    def value(self, layer: Any) -> Float[Array, "*shape"]:
        weight, u, v = (getattr(layer, f"{self.name}_{part}")[...] for part in ("orig", "u", "v"))
        return weight / (u @ (matrix_of(weight, self.dim) @ v))

    def before_call(self, layer: Any) -> None:
        if layer.use_running_average:
            return
        weight, u, v = (getattr(layer, f"{self.name}_{part}") for part in ("orig", "u", "v"))
        matrix = jax.lax.stop_gradient(matrix_of(weight[...], self.dim))
        for _ in range(self.n_power_iterations):
            v[...] = normalize(matrix.T @ u[...], self.eps)
            u[...] = normalize(matrix @ v[...], self.eps)


def weight_norm(module: Layer, name: str = "weight", dim: int | None = 0) -> Layer:
    """Give a layer's weight as `weight_g`, its norms along `dim`, times `weight_v` / its norms; the layer itself.

    Salimans and Kingma 2016, arXiv:1602.07868. `dim` None takes one norm of the whole weight.

    Raises:
        UsageError: the layer has no such parameter.
    """
    weight = in_torch_layout(module, name)
    variable = taken(module, name)
    setattr(module, f"{name}_g", type(variable)(norms_except(weight, dim)))
    setattr(module, f"{name}_v", type(variable)(weight))
    compute(module, _WeightNorm(name, dim))
    return module


def remove_weight_norm(module: Layer, name: str = "weight") -> Layer:
    """Make the weight one parameter again; the layer itself.

    Raises:
        UsageError: the layer has no weight norm under this name.
    """
    return _removed(module, name, _WeightNorm, ("g", "v"))


def spectral_norm(
    module: Layer,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    rngs: nnx.Rngs,
) -> Layer:
    """Divide a layer's weight `weight_orig` by its largest singular value; the layer itself.

    Miyato et al. 2018, arXiv:1802.05957. In train mode each call first improves the vectors `weight_u` and `weight_v`
    by power iteration. `dim` None is the axis of the outputs: 0, or 1 of transposed convolutions.

    Raises:
        UsageError: the layer has no such parameter, or n_power_iterations is not positive.
    """
    if n_power_iterations <= 0:
        raise UsageError(f"n_power_iterations must be positive, not {n_power_iterations}")
    weight = in_torch_layout(module, name)
    dim = outputs_dim(module) if dim is None else dim
    variable = taken(module, name)
    setattr(module, f"{name}_orig", type(variable)(weight))
    for part, size in zip("uv", matrix_of(weight, dim).shape, strict=True):
        vector = normalize(init.normal(1.0)(rngs.params(), (size,)), eps)
        setattr(module, f"{name}_{part}", Buffer(vector.astype(weight.dtype)))
    if not hasattr(module, "use_running_average"):
        module.use_running_average = False  # type: ignore[attr-defined]
    compute(module, _SpectralNorm(name, n_power_iterations, eps, dim))
    return module


def remove_spectral_norm(module: Layer, name: str = "weight") -> Layer:
    """Make the weight, divided by its largest singular value, one parameter again; the layer itself.

    Raises:
        UsageError: the layer has no spectral norm under this name.
    """
    return _removed(module, name, _SpectralNorm, ("orig", "u", "v"))


def _removed(module: Any, name: str, kind: type[Computed], parts: tuple[str, ...]) -> Any:
    found = [c for c in recipes(module) if c.name == name and isinstance(c, kind)]
    if not found:
        raise UsageError(f"{type(module).__name__} has no {kind.__name__.strip('_')} of {name!r}")
    value = from_torch_layout(found[0].value(module), module.LAYOUT.get(name))
    variable = type(getattr(module, f"{name}_{parts[0]}"))(value)
    for part in parts:
        delattr(module, f"{name}_{part}")
    restore(module, name, variable)
    return module
