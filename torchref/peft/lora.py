"""LoRA: low-rank adapters parallel to the linear layers of any model, by their paths.

Hu et al. 2021, arXiv:2106.09685. Names and files are those of the `peft` library.
"""

import fnmatch

from torch import Tensor
from torch.nn import Dropout, Linear, Module, init

from torchref.nn import Conv1D


class LoRALayer(Module):
    """x A B alpha / rank: (..., in_features) -> (..., out_features). B is initialised to zero, A as in a Linear.

    A rank below 1 is a ValueError.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int = 16, alpha: float = 32.0, dropout: float = 0.1
    ):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.lora_dropout = Dropout(dropout)
        self.lora_A = Linear(in_features, rank, bias=False)
        self.lora_B = Linear(rank, out_features, bias=False)
        init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scale

    def delta(self) -> Tensor:
        """The update of a weight stored (out, in)."""
        return self.lora_B.weight @ self.lora_A.weight * self.scale


class LoRALinear(Module):
    """A Linear, or GPT-2's Conv1D, with a LoRALayer parallel to it: (..., in) -> (..., out)."""

    def __init__(self, linear: Linear | Conv1D, rank: int = 16, alpha: float = 32.0, dropout: float = 0.1):
        super().__init__()
        outputs, inputs = linear.weight.shape[::-1] if isinstance(linear, Conv1D) else linear.weight.shape
        layer = LoRALayer(inputs, outputs, rank, alpha, dropout).to(linear.weight)
        self.base_layer = linear
        self.scale, self.rank, self.alpha = layer.scale, rank, alpha
        self.lora_dropout, self.lora_A, self.lora_B = layer.lora_dropout, layer.lora_A, layer.lora_B
        self.original_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y if self.merged else y + self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scale

    @property
    def merged(self) -> bool:
        """Whether the adapter is merged into the weight."""
        return self.original_weight is not None

    @property
    def weight(self) -> Tensor:
        """The weight with the adapter, for code that reads a layer's weight."""
        if self.merged:
            return self.base_layer.weight
        delta = self.lora_B.weight @ self.lora_A.weight * self.scale
        return self.base_layer.weight + (delta.T if isinstance(self.base_layer, Conv1D) else delta)

    @property
    def bias(self) -> Tensor | None:
        """The base layer's."""
        return self.base_layer.bias

    def merge(self) -> None:
        """Merge the adapter into the weight; a copy of the original weight is stored."""
        if not self.merged:
            merged = self.weight.detach()
            self.original_weight = self.base_layer.weight.detach().clone()
            self.base_layer.weight.data.copy_(merged)

    def unmerge(self) -> None:
        """Restore the original weight, bit for bit."""
        if self.original_weight is not None:
            self.base_layer.weight.data.copy_(self.original_weight)
            self.original_weight = None


def apply_lora(
    model: Module, match: str, rank: int = 16, alpha: float = 32.0, dropout: float = 0.1
) -> list[str]:
    """Add adapters to the linear layers whose path matches, and freeze everything else, in place.

    `match` holds patterns of paths with `*`, one or several joined by `|`: "*.w_q|*.w_v". Returns the paths
    of the layers that got an adapter. A pattern that matches none, and a model with adapters, are
    ValueErrors.
    """
    if lora_layers(model):
        raise ValueError("the model has adapters: merge and remove them, or create a new model")
    linears = {p: m for p, m in model.named_modules() if isinstance(m, Linear | Conv1D)}
    paths: list[str] = []
    for pattern in match.split("|"):
        hits = fnmatch.filter(linears, pattern)
        if not hits:
            raise ValueError(f"no linear layer matches {pattern!r}: there are {', '.join(linears)}")
        paths += [h for h in hits if h not in paths]
    model.requires_grad_(False)
    for path in paths:
        model.set_submodule(path, LoRALinear(linears[path], rank, alpha, dropout))
    return paths


def remove_lora(model: Module) -> None:
    """Restore the plain layers, with the adapters merged where `merge` was called; all weights are trainable."""
    for path, layer in lora_layers(model).items():
        model.set_submodule(path, layer.base_layer)
    model.requires_grad_()


def lora_layers(model: Module) -> dict[str, LoRALinear]:
    """The layers with adapters by path."""
    return {p: m for p, m in model.named_modules() if isinstance(m, LoRALinear)}
