"""Gradients written by hand."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter


class CustomGradientFunction(torch.autograd.Function):
    """x W' + b with its gradient by hand: torch.autograd.Function.

    `apply(x, weight, bias)`: (..., in), (out, in), (out,) or None -> (..., out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        y = x @ weight.T
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight, bias = ctx.saved_tensors
        rows, columns = gradient.flatten(0, -2), x.flatten(0, -2)
        return gradient @ weight, rows.T @ columns, None if bias is None else rows.sum(0)


class CustomLinear(Module):
    """torch.nn.Linear's parameters and initialiser around CustomGradientFunction.

    (..., in_features) -> (..., out_features).
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = Parameter(torch.empty(out_features, in_features))
        torch.nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(in_features)
        self.bias = Parameter(torch.empty(out_features).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return CustomGradientFunction.apply(x, self.weight, self.bias)
