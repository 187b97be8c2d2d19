"""Linear and bilinear layers with torch's names and initialisers."""

import math
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import DataError
from jaxarch.nn import init
from jaxarch.nn.module import Module, Perm, from_torch_layout, optional


class Linear(Module):
    """y = x W + b with torch.nn.Linear's names and initialiser; the weight is stored (in, out).

    (..., in_features) -> (..., out_features).

    Raises:
        DataError: in the call, another number of features.
    """

    LAYOUT: ClassVar[dict[str, Perm]] = {"weight": (1, 0)}

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rngs: nnx.Rngs):
        weight = init.torch_default(rngs.params(), (out_features, in_features))
        self.in_features, self.out_features = in_features, out_features
        self.weight = nnx.Param(from_torch_layout(weight, self.LAYOUT["weight"]))
        bound = 1 / math.sqrt(in_features or 1)
        self.bias = optional(init.uniform(bound)(rngs.params(), (out_features,)) if bias else None)

    def __call__(self, input: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        if input.shape[-1] != self.in_features:
            raise DataError(
                f"input of shape {input.shape} has not the {self.in_features} features of the layer"
            )
        y = input @ self.weight[...]
        return y if self.bias is None else y + self.bias[...]


class Bilinear(Module):
    """y_k = x1 W_k x2 + b_k; the weight is (out_features, in1_features, in2_features), as in torch.

    (..., in1_features), (..., in2_features) -> (..., out_features).

    Raises:
        DataError: in the call, another number of features, or leading axes that differ.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rngs: nnx.Rngs,
    ):
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        draw = init.uniform(1 / math.sqrt(in1_features or 1))
        self.weight = nnx.Param(draw(rngs.params(), (out_features, in1_features, in2_features)))
        self.bias = optional(draw(rngs.params(), (out_features,)) if bias else None)

    def __call__(
        self, input1: Float[Array, "*batch i"], input2: Float[Array, "*batch j"]
    ) -> Float[Array, "*batch o"]:
        sizes = (*input1.shape[:-1], self.in1_features), (*input1.shape[:-1], self.in2_features)
        if (input1.shape, input2.shape) != sizes:
            raise DataError(
                f"Bilinear takes (..., {self.in1_features}) and (..., {self.in2_features}), "
                f"not {input1.shape} and {input2.shape}"
            )
        y = jnp.einsum("...i,oij,...j->...o", input1, self.weight[...], input2)
        return y if self.bias is None else y + self.bias[...]


class Identity(Module):
    """Its input, whatever it is; any arguments of the constructor are ignored, as torch's are."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, input: Any) -> Any:
        return input
