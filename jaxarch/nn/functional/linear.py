"""Products with a weight and look-ups in a table under torch.nn.functional's names; weights have torch's layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError
from jaxarch.nn import embedding as tables
from jaxarch.nn.embedding import check_ids

Values = Float[Array, "..."]
Table = Float[Array, "n d"] | nnx.Variable


def linear(input: Values, weight: Values, bias: Values | None = None) -> Values:
    """input @ weight^T + bias. (..., in), weight (out, in) or (in,) -> (..., out) or (...).

    The weight is torch's: that of an `nn.Linear` here is transposed, that of an `nn.Embedding` is not.

    Raises:
        DataError: shapes that do not fit.
    """
    if weight.ndim not in (1, 2) or input.shape[-1:] != weight.shape[-1:]:
        raise DataError(f"input {input.shape} and weight {weight.shape} must be (..., in) and (out, in)")
    y = input @ weight.T
    return y if bias is None else y + bias


def bilinear(input1: Values, input2: Values, weight: Values, bias: Values | None = None) -> Values:
    """input1 W_k input2 + b_k. (..., i), (..., j), weight (out, i, j) -> (..., out).

    Raises:
        DataError: shapes that do not fit.
    """
    sizes = (*input1.shape[:-1], *weight.shape[1:2]), (*input1.shape[:-1], *weight.shape[2:])
    if weight.ndim != 3 or (input1.shape, input2.shape) != sizes:
        raise DataError(
            f"inputs {input1.shape}, {input2.shape} and weight {weight.shape} must be (..., i), (..., j), (o, i, j)"
        )
    y = jnp.einsum("...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else y + bias


def _table(cls: type[Any], weight: Table, max_norm: float | None, **options: Any) -> Any:
    """The layer of a table; with `max_norm` it scales rows of the given Variable itself, as torch does."""
    array = weight[...] if isinstance(weight, nnx.Variable) else weight
    layer = cls.from_pretrained(array, freeze=False, max_norm=max_norm, **options)
    if isinstance(weight, nnx.Variable):
        layer.weight = weight
    elif max_norm is not None:
        raise UsageError(
            "max_norm scales rows of the weight itself, and arrays cannot change: give an nnx.Param"
        )
    return layer


def embedding(
    input: Int[Array, "..."],
    weight: Table,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Values:
    """The rows (num_embeddings, embedding_dim) that the ids (...) name -> (..., embedding_dim): `nn.Embedding`.

    Raises:
        UsageError: max_norm with an array, which cannot change; an nnx.Param can.
        DataError: as the layer.
    """
    options = {"padding_idx": padding_idx, "norm_type": norm_type, "scale_grad_by_freq": scale_grad_by_freq}
    return _table(tables.Embedding, weight, max_norm, **options)(input)


def embedding_bag(
    input: Int[Array, "..."],
    weight: Table,
    offsets: Int[Array, " b"] | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Values | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Values:
    """The sum, mean or maximum of the rows of each bag of ids: `nn.EmbeddingBag`.

    Raises:
        UsageError: max_norm with an array, which cannot change; an nnx.Param can.
        DataError: as the layer.
    """
    layer = _table(
        tables.EmbeddingBag,
        weight,
        max_norm,
        norm_type=norm_type,
        scale_grad_by_freq=scale_grad_by_freq,
        mode=mode,
        sparse=sparse,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )
    return layer(input, offsets, per_sample_weights)


def one_hot(tensor: Int[Array, "..."], num_classes: int = -1) -> Int[Array, "... c"]:
    """1 at each id, 0 elsewhere, integers. (...) -> (..., num_classes); -1: one more than the largest id.

    Raises:
        UsageError: num_classes -1 under jit, where ids are unknown, or of no ids.
        DataError: (not under jit) an id out of range.
    """
    if num_classes == -1:
        if isinstance(tensor, jax.core.Tracer) or not tensor.size:
            raise UsageError(
                "one_hot counts classes by the largest id, which is unknown here: give num_classes"
            )
        num_classes = int(np.max(np.asarray(tensor))) + 1
    check_ids(tensor, num_classes)
    return jax.nn.one_hot(tensor, num_classes, dtype=jnp.result_type(int))
