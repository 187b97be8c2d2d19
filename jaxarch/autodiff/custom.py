"""Gradients written by hand."""

import math
from typing import Any, ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.nn import init
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional


class CustomGradientFunction:
    """x W + b with its gradient by hand: jax.custom_vjp.

    `apply(x, weight, bias)`: (..., in), (in, out), (out,) or None -> (..., out). Forward mode is not defined.
    """

    @staticmethod
    def forward(x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
        y = x @ weight
        return (y if bias is None else y + bias), (x, weight, bias)

    @staticmethod
    def backward(saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
        x, weight, bias = saved
        rows, columns = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        return gradient @ weight.T, columns.T @ rows, None if bias is None else rows.sum(0)

    @staticmethod
    def apply(
        x: Float[Array, "*batch i"], weight: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
    ) -> Float[Array, "*batch o"]:
        return _custom_linear(x, weight, bias)


@jax.custom_vjp
def _custom_linear(x: Array, weight: Array, bias: Array | None) -> Array:
    return CustomGradientFunction.forward(x, weight, bias)[0]


_custom_linear.defvjp(CustomGradientFunction.forward, CustomGradientFunction.backward)


class CustomLinear(Module):
    """torch.nn.Linear's parameters and initialiser around CustomGradientFunction.

    (..., in_features) -> (..., out_features).
    """

    LAYOUT: ClassVar[dict[str, Perm]] = nn.Linear.LAYOUT

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rngs: nnx.Rngs):
        weight = init.torch_default(rngs.params(), (out_features, in_features))
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        bound = 1 / math.sqrt(in_features)
        self.bias = optional(init.uniform(bound)(rngs.params(), (out_features,)) if bias else None)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        bias = None if self.bias is None else self.bias[...]
        return CustomGradientFunction.apply(x, self.weight[...], bias)
