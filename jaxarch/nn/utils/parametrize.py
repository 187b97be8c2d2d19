"""torch.nn.utils.parametrize: a parameter that modules compute from another, `parametrizations.weight.original`.

Parametrizations see arrays in torch's layout, and what they compute from is stored in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn.containers import ModuleDict
from jaxarch.nn.module import Module, from_torch_layout
from jaxarch.nn.utils.computed import Computed, compute, in_torch_layout, restore, taken

Layer = TypeVar("Layer", bound=nnx.Module)


class ParametrizationList(Module):
    """Modules that are applied one after another to `original`, or to `original0`, `original1`, ...

    The first takes all originals; if it has a `right_inverse`, that gives them for a value.
    """

    def __init__(self, parametrization: nnx.Module, variable: nnx.Variable, value: Float[Array, "*shape"]):
        self.count = 0
        self.append(parametrization)
        originals = self.right_inverse(value)
        self.single = isinstance(originals, jax.Array)
        for key, original in zip(self._keys(originals), self._tuple(originals), strict=True):
            setattr(self, key, type(variable)(original))

    def append(self, parametrization: nnx.Module) -> None:
        """Apply one more module, after the others."""
        setattr(self, str(self.count), parametrization)
        self.count += 1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, str(i)) for i in range(self.count))

    def __getitem__(self, index: int) -> Any:
        return list(self)[index]

    def __call__(self) -> Float[Array, "*shape"]:
        first, *others = self
        value = first(*(v[...] for v in self.originals()))
        for parametrization in others:
            value = parametrization(value)
        return value

    def originals(self) -> list[nnx.Variable]:
        """The variables that the value is computed from."""
        keys = sorted(k for k in vars(self) if k.startswith("original"))
        return [getattr(self, k) for k in keys]

    def right_inverse(self, value: Float[Array, "*shape"]) -> Any:
        """The array, or the tuple of arrays, that the value is computed from."""
        for parametrization in reversed(list(self)):
            if hasattr(parametrization, "right_inverse"):
                value = parametrization.right_inverse(value)
        return value

    def assign(self, value: Float[Array, "*shape"]) -> None:
        """Set the originals to those of a value."""
        for variable, new in zip(self.originals(), self._tuple(self.right_inverse(value)), strict=True):
            variable[...] = new

    @staticmethod
    def _tuple(originals: Any) -> tuple[Array, ...]:
        return (originals,) if isinstance(originals, jax.Array) else tuple(originals)

    @staticmethod
    def _keys(originals: Any) -> list[str]:
        if isinstance(originals, jax.Array):
            return ["original"]
        return [f"original{i}" for i in range(len(originals))]


@dataclass(frozen=True)
class _Parametrized(Computed):
    """The value that `parametrizations` has for the name."""

    def value(self, layer: Any) -> Float[Array, "*shape"]:
        return layer.parametrizations[self.name]()

    def assign(self, layer: Any, value: Float[Array, "*shape"]) -> None:
        layer.parametrizations[self.name].assign(value)


def register_parametrization(module: Layer, tensor_name: str, parametrization: nnx.Module) -> Layer:
    """Compute a parameter of a layer by a module: `parametrization(original)`, in torch's layout; the layer itself.

    A second one is applied to the value of the first. The value is computed whenever the layer reads it.

    Raises:
        UsageError: the layer has no such parameter; a further parametrization changes the shape.
    """
    if is_parametrized(module, tensor_name):
        parametrizations = module.parametrizations[tensor_name]  # type: ignore[attr-defined]
        value = parametrizations()
        if parametrization(value).shape != value.shape:  # type: ignore[operator]
            raise UsageError(f"a parametrization of {tensor_name} must keep its shape {value.shape}")
        parametrizations.append(parametrization)
        return module
    value = in_torch_layout(module, tensor_name)
    every = ParametrizationList(parametrization, vars(module)[tensor_name], value)
    if every().shape != value.shape:
        raise UsageError(f"a parametrization of {tensor_name} must keep its shape {value.shape}")
    taken(module, tensor_name)
    if not is_parametrized(module):
        module.parametrizations = ModuleDict()  # type: ignore[attr-defined]
    module.parametrizations[tensor_name] = every  # type: ignore[attr-defined]
    compute(module, _Parametrized(tensor_name))
    return module


def is_parametrized(module: nnx.Module, tensor_name: str | None = None) -> bool:
    """Whether a layer has a parametrized parameter, or one under this name."""
    parametrizations = vars(module).get("parametrizations")
    if not isinstance(parametrizations, ModuleDict):
        return False
    return bool(parametrizations) if tensor_name is None else tensor_name in parametrizations


def remove_parametrizations(module: Layer, tensor_name: str, leave_parametrized: bool = True) -> Layer:
    """Make a parametrized parameter one again, with its computed value or with the original; the layer itself.

    Raises:
        UsageError: it is not parametrized; the original is several arrays and is to be left.
    """
    if not is_parametrized(module, tensor_name):
        raise UsageError(f"{type(module).__name__} has no parametrized {tensor_name!r}")
    every = module.parametrizations[tensor_name]  # type: ignore[attr-defined]
    if not leave_parametrized and not every.single:
        raise UsageError(f"{tensor_name} has several originals: leave it parametrized")
    value = every() if leave_parametrized else every.originals()[0][...]
    del module.parametrizations[tensor_name]  # type: ignore[attr-defined]
    if not len(module.parametrizations):  # type: ignore[attr-defined]
        del module.parametrizations  # type: ignore[attr-defined]
    perm = module.LAYOUT.get(tensor_name)  # type: ignore[attr-defined]
    restore(module, tensor_name, type(every.originals()[0])(from_torch_layout(value, perm)))
    return module
