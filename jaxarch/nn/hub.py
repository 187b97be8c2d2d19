"""Parts that Hugging Face's models share: GPT-2's Conv1D, activations by name, attention, initialisation, loss.

Shapes: b batch, t positions, d width, v vocabulary, h heads.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.activation import ACTIVATIONS, Function
from jaxarch.nn.attention import Cache
from jaxarch.nn.dropout import Dropout
from jaxarch.nn.embedding import Embedding, check_ids
from jaxarch.nn.kernels.attention import exact_attention, pattern
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.masks import expand_mask
from jaxarch.nn.module import Module

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
    """The activation function of a Hugging Face name.

    Raises:
        UsageError: unknown name; the known ones are listed.
    """
    if name not in HUB_ACTIVATIONS:
        raise unknown("activation", name, HUB_ACTIVATIONS)
    return HUB_ACTIVATIONS[name]


class Conv1D(Module):
    """GPT-2's linear layer: y = x W + b, the weight stored (in, out) in both frameworks.

    (..., nx) -> (..., nf), in Hugging Face's order of arguments. Weights start at N(0, 0.02^2), biases at zero.
    """

    def __init__(self, nf: int, nx: int, *, rngs: nnx.Rngs):
        self.nf, self.nx = nf, nx
        self.weight = nnx.Param(init.normal(0.02)(rngs.params(), (nx, nf)))
        self.bias = nnx.Param(jnp.zeros(nf, init.float_dtype()))

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return x @ self.weight[...] + self.bias[...]


def attend(
    q: Float[Array, "b q d"],
    k: Float[Array, "b k d"],
    v: Float[Array, "b k d"],
    heads: int,
    mask: Shaped[Array, "..."] | None = None,
    dropout: Dropout | None = None,
    causal: bool = False,
    factor: float = 1.0,
    cache: Cache | None = None,
) -> tuple[Float[Array, "b q d"], Float[Array, "b h q m"], Cache | None]:
    """Multi-head attention of projected queries, keys and values; the weights, after dropout; the cache.

    `mask` is (B, Tk) or (B, Tq, Tk), True where attention is allowed. `factor` multiplies the usual scale.
    With a cache the new keys are appended to it, and queries attend to all it holds.

    Raises:
        UsageError: the heads do not divide the width.
        DataError: a mask that does not fit.
    """
    if q.shape[-1] % heads:
        raise UsageError(f"{heads} heads do not divide the width {q.shape[-1]}")
    shape = q.shape
    start: int | Array = 0
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    if cache is not None:
        start, cache = cache.length, cache.extended(k, v)
        k, v = cache.k, cache.v
    mask = expand_mask(mask, (*q.shape[:3], k.shape[2]))
    q_positions = jnp.arange(q.shape[2]) + start
    k_positions = jnp.arange(k.shape[2])
    allowed = pattern(q_positions, k_positions, "standard", 1, causal)
    y, weights = exact_attention(q if factor == 1 else q * factor, k, v, mask, allowed, dropout)
    return y.transpose(0, 2, 1, 3).reshape(shape), weights, cache


def draw_normal(module: nnx.Module, std: float, *, rngs: nnx.Rngs) -> None:
    """Draw every projection and table in `module` from N(0, std^2), as Hugging Face's models do; biases become
    zero.

    Norms stay as they are, and a table's row `padding_idx` is zero.
    """
    for _, layer in nnx.iter_modules(module):
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nnx.Param) or weight.ndim < 2:
            continue
        # `weight[...] = x` inspects shardings, which in a trace formats all of it for the error that it catches.
        weight.set_value(init.normal(std)(rngs.params(), weight.shape))
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias.set_value(jnp.zeros_like(bias[...]))
        if isinstance(layer, Embedding) and layer.padding_idx is not None:
            weight.set_value(weight[...].at[layer.padding_idx].set(0))


def normal_parameter(shape: tuple[int, ...], std: float, *, rngs: nnx.Rngs) -> nnx.Param:
    """A parameter drawn from N(0, std^2); zero for std 0."""
    return nnx.Param(init.normal(std)(rngs.params(), shape))


def token_loss(logits: Float[Array, "*n v"], labels: Int[Array, "*n"]) -> Float[Array, ""]:
    """The mean cross-entropy over labels other than -100; 0 if there are none. Float32 at least."""
    log_p = jax.nn.log_softmax(logits.astype(accumulation_dtype(logits.dtype)))
    valid = labels != -100
    check_ids(jnp.where(valid, labels, 0), logits.shape[-1], "label")
    picked = jnp.take_along_axis(log_p, jnp.where(valid, labels, 0)[..., None], -1)[..., 0]
    return -jnp.where(valid, picked, 0).sum() / jnp.maximum(valid.sum(), 1).astype(log_p.dtype)


def classification_loss(logits: Float[Array, "b n"], labels: Array, kind: str | None) -> Float[Array, ""]:
    """The loss of Hugging Face's classifiers.

    `kind` is one of PROBLEM_TYPES or, if None, inferred from the labels: one label is a regression (floats (B,) or
    (B, 1), squared error), integers (B,) are classes (cross-entropy, -100 does not count), floats (B, N) are labels
    that may hold together (binary cross-entropy).

    Raises:
        DataError: labels that do not fit the problem.
    """
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    if kind is None:
        kind = "single_label_classification" if not floating else "multi_label_classification"
        kind = "regression" if logits.shape[1] == 1 else kind
    if kind == "single_label_classification":
        if floating or labels.shape != logits.shape[:1]:
            raise DataError(f"labels must be integers of shape {logits.shape[:1]} for {kind}")
        return token_loss(logits, labels)
    labels = labels.reshape(logits.shape) if logits.shape[1] == 1 else labels
    if not floating or labels.shape != logits.shape:
        raise DataError(f"labels must be floats of shape {logits.shape} for {kind}")
    if kind == "regression":
        return jnp.square(logits - labels).mean()
    return (jax.nn.softplus(logits) - logits * labels).mean()


def check_same_shape(shape: tuple[int, ...], **others: Array | None) -> None:
    """Refuse arguments that are not of the shape of the ids.

    Raises:
        DataError: naming the argument and both shapes.
    """
    for name, value in others.items():
        if value is not None and tuple(value.shape) != tuple(shape):
            raise DataError(
                f"{name} has shape {tuple(value.shape)}, the input_ids {tuple(shape)}: they must agree"
            )
