"""Containers with torch's names: a Sequential's children are 0, 1, 2, ..."""

from typing import Any

from flax import nnx

ModuleDict = nnx.Dict
ModuleList = nnx.List


class Sequential(nnx.List):
    """Calls its layers one after another; `Sequential(a, b)` names them `0` and `1`."""

    def __init__(self, *layers: Any):
        super().__init__(layers)

    def __call__(self, x: Any) -> Any:
        for layer in self:
            x = layer(x)
        return x
