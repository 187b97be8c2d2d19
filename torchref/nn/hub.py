"""Parts that Hugging Face's models share: GPT-2's Conv1D, activations by name, attention, initialisation, loss.

Shapes: b batch, t positions, d width, v vocabulary, h heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Conv2d, Dropout, Embedding, Linear, Module, Parameter, init
from torch.nn import functional as F

from torchref.nn.activation import ACTIVATIONS, Function
from torchref.nn.attention import Cache, exact_attention, pattern
from torchref.nn.masks import expand_mask

HUB_ACTIVATIONS: Mapping[str, Function] = {
    **{
        k: ACTIVATIONS[k] for k in ("gelu", "leaky_relu", "relu", "relu6", "sigmoid", "silu", "swish", "tanh")
    },
    "gelu_new": ACTIVATIONS["gelu_tanh"],
    "gelu_pytorch_tanh": ACTIVATIONS["gelu_tanh"],
    "gelu_python": ACTIVATIONS["gelu"],
    "linear": ACTIVATIONS["identity"],
}

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def hub_activation(name: str) -> Function:
    """The activation function of a Hugging Face name. An unknown name is a ValueError."""
    if name not in HUB_ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: known: {', '.join(HUB_ACTIVATIONS)}")
    return HUB_ACTIVATIONS[name]


class Conv1D(Module):
    """GPT-2's linear layer: y = x W + b, the weight stored (in, out) in both frameworks.

    (..., nx) -> (..., nf), in Hugging Face's order of arguments. Weights start at N(0, 0.02^2), biases at zero.
    """

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = Parameter(init.normal_(torch.empty(nx, nf), std=0.02))
        self.bias = Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
    factor: float = 1.0,
    cache: Cache | None = None,
) -> tuple[Tensor, Tensor, Cache | None]:
    """Multi-head attention of projected queries, keys and values; the weights, after dropout; the cache.

    `mask` is (B, Tk) or (B, Tq, Tk), True where attention is allowed. `factor` multiplies the usual scale.
    With a cache the new keys are appended to it, and queries attend to all it holds. Heads that do not
    divide the width and masks that do not fit are ValueErrors.
    """
    if q.shape[-1] % heads:
        raise ValueError(f"{heads} heads do not divide the width {q.shape[-1]}")
    shape, start = q.shape, 0
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    if cache is not None:
        start, cache = cache.length, cache.extended(k, v)
        k, v = cache.k, cache.v
    mask = expand_mask(mask, (*q.shape[:3], k.shape[2]))
    q_positions = torch.arange(q.shape[2], device=q.device) + start
    k_positions = torch.arange(k.shape[2], device=q.device)
    allowed = pattern(q_positions, k_positions, "standard", 1, causal)
    y, weights = exact_attention(q if factor == 1 else q * factor, k, v, mask, allowed, dropout)
    return y.transpose(1, 2).reshape(shape), weights, cache


def draw_normal(module: Module, std: float) -> None:
    """Draw every projection and table in `module` from N(0, std^2), as Hugging Face's models do; biases become
    zero.

    Norms stay as they are, and a table's row `padding_idx` is zero.
    """
    for layer in module.modules():
        if not isinstance(layer, Linear | Conv1D | Conv2d | Embedding):
            continue
        init.normal_(layer.weight, std=std)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            init.zeros_(bias)
        if isinstance(layer, Embedding) and layer.padding_idx is not None:
            init.zeros_(layer.weight.data[layer.padding_idx])


def normal_parameter(shape: tuple[int, ...], std: float) -> Parameter:
    """A parameter drawn from N(0, std^2); zero for std 0."""
    return Parameter(init.normal_(torch.empty(shape), std=std))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy over labels other than -100; 0 if there are none. Float32 at least."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    valid = labels != -100
    picked = log_p.gather(-1, labels.where(valid, 0)[..., None])[..., 0]
    return -picked.where(valid, 0.0).sum() / valid.sum().clamp(min=1)


def classification_loss(logits: Tensor, labels: Tensor, kind: str | None) -> Tensor:
    """The loss of Hugging Face's classifiers.

    `kind` is one of PROBLEM_TYPES or, if None, inferred from the labels: one label is a regression (floats (B,) or
    (B, 1), squared error), integers (B,) are classes (cross-entropy, -100 does not count), floats (B, N) are labels
    that may hold together (binary cross-entropy). Labels that do not fit the problem are a ValueError.
    """
    floating = labels.is_floating_point()
    if kind is None:
        kind = "single_label_classification" if not floating else "multi_label_classification"
        kind = "regression" if logits.shape[1] == 1 else kind
    if kind == "single_label_classification":
        if floating or labels.shape != logits.shape[:1]:
            raise ValueError(f"labels must be integers of shape {tuple(logits.shape[:1])} for {kind}")
        return token_loss(logits, labels)
    labels = labels.reshape(logits.shape) if logits.shape[1] == 1 else labels
    if not floating or labels.shape != logits.shape:
        raise ValueError(f"labels must be floats of shape {tuple(logits.shape)} for {kind}")
    if kind == "regression":
        return (logits - labels).square().mean()
    return F.binary_cross_entropy_with_logits(logits, labels)


def check_same_shape(shape: tuple[int, ...], **others: Tensor | None) -> None:
    """Refuse arguments that are not of the shape of the ids, by a ValueError that names both."""
    for name, value in others.items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the input_ids {tuple(shape)}: they must agree"
            )
