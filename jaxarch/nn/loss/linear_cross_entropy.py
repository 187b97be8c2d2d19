"""Cross-entropy of a linear layer's logits, computed in chunks of the batch so that they need not all be in memory.

As in torch 2.13; the classes of a target of probabilities are last.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.linear import Linear
from jaxarch.nn.loss.classification import checked_labels, entropy_rows
from jaxarch.nn.loss.reduction import WeightedLoss, optional_value, reduced, reduction_name

POLICIES = ("accurate", "balanced", "compact", "auto")


@dataclass(frozen=True, slots=True)
class LinearCrossEntropyOptions:
    """torch.nn.LinearCrossEntropyOptions: how many rows of the batch have their logits in memory at a time.

    `batch_chunk_size` is that number; "aspect_ratio:N" of `chunking_method` chooses it so that the logits take
    about 1/N of the memory of the input; "auto" is "aspect_ratio:2". `acc_dtype` is the dtype of the logits: None
    is float32, or float64 for float64. `acc_policy` and `allow_retain_graph` choose between torch's kernels and
    have no effect here: gradients are recomputed, and may be taken any number of times.

    Raises:
        UsageError: unknown policy or method, a chunk size below 1.
    """

    allow_retain_graph: bool = False
    batch_chunk_size: int | None = None
    chunking_method: str | None = "auto"
    acc_policy: str = "auto"
    acc_dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        if self.acc_policy not in POLICIES:
            raise UsageError(f"acc_policy must be one of {', '.join(POLICIES)}, not {self.acc_policy!r}")
        if self.chunking_method not in (None, "auto"):
            name, colon, factor = str(self.chunking_method).partition(":")
            if name != "aspect_ratio" or (colon and not (factor.isdigit() and int(factor) > 0)):
                raise UsageError(
                    f"chunking_method must be 'auto', 'aspect_ratio', 'aspect_ratio:N' or None, "
                    f"not {self.chunking_method!r}"
                )
        if self.batch_chunk_size is not None and self.batch_chunk_size < 1:
            raise UsageError(f"batch_chunk_size must be at least 1, not {self.batch_chunk_size}")
        if self.acc_dtype is not None and not jnp.issubdtype(self.acc_dtype, jnp.floating):
            raise UsageError(f"acc_dtype must be a floating dtype, not {self.acc_dtype}")

    def chunk_size(self, rows: int, in_features: int, num_classes: int) -> int:
        """The number of rows in a chunk of a batch of `rows`.

        Raises:
            UsageError: batch_chunk_size and chunking_method are both given and differ.
        """
        method = self.chunking_method
        if method == "auto":
            method = "aspect_ratio:2" if self.batch_chunk_size is None else None
        if method is None:
            return max(1, min(self.batch_chunk_size or rows, rows))
        target = -(-rows // -(-num_classes // in_features))
        by_method = min((1 << (target - 1).bit_length()) // int(method.partition(":")[2] or 1), rows)
        if self.batch_chunk_size not in (None, by_method):
            raise UsageError(
                f"batch_chunk_size {self.batch_chunk_size} and chunking_method {method!r}, which gives "
                f"{by_method}, differ: give one of them"
            )
        return max(1, by_method)


def linear_cross_entropy(
    input: Float[Array, "..."],
    linear_weight: Float[Array, "..."],
    target: Shaped[Array, "..."],
    *,
    linear_bias: Float[Array, "..."] | None = None,
    weight: Float[Array, "..."] | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
) -> Float[Array, "..."]:
    """torch.nn.functional.linear_cross_entropy: `cross_entropy` of input @ linear_weight^T + linear_bias.

    input (N, in_features) or (in_features,); linear_weight (C, d1, ..., in_features) and linear_bias (C, d1, ...)
    in torch's layout; labels (N, d1, ...), or probabilities (N, d1, ..., C), classes last. With `options` every
    kind of target is computed in chunks; torch computes some at once, with the same result.

    Raises:
        DataError: shapes that do not fit; (not under jit) a label outside [0, C).
        UsageError: `ignore_index` with probabilities, unknown reduction.
    """
    _check_shapes(input, linear_weight, linear_bias)
    return _of_matrix(
        input,
        linear_weight.reshape(-1, linear_weight.shape[-1]).T,
        target,
        None if linear_bias is None else linear_bias.reshape(-1),
        weight,
        shape=linear_weight.shape[:-1],
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options,
    )


def _check_shapes(
    input: Float[Array, "..."], weight: Float[Array, "..."], bias: Float[Array, "..."] | None
) -> None:
    if input.ndim not in (1, 2) or weight.ndim < 2:
        raise DataError(
            f"input of shape {input.shape} must be (N, in) or (in,), linear_weight {weight.shape} (C, ..., in)"
        )
    if input.shape[-1] != weight.shape[-1]:
        raise DataError(
            f"input of shape {input.shape} and linear_weight {weight.shape} must have one last axis, in_features"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise DataError(f"linear_bias of shape {bias.shape} must have the shape {weight.shape[:-1]}")
    if weight.ndim > 2 and input.ndim == 1:
        raise DataError(f"a linear_weight of shape {weight.shape} needs an input with a batch axis, (N, in)")


def _of_matrix(
    input: Float[Array, "*n i"],
    matrix: Float[Array, "i o"],
    target: Shaped[Array, "..."],
    bias: Float[Array, " o"] | None,
    weight: Float[Array, "..."] | None,
    *,
    shape: tuple[int, ...],
    reduction: str,
    ignore_index: int | None,
    label_smoothing: float,
    options: LinearCrossEntropyOptions | None,
) -> Float[Array, "..."]:
    """The loss by the matrix as `Linear` stores it; its columns have the shape (C, d1, ...)."""
    reduction = reduction_name(None, None, reduction)
    logits_shape = (*input.shape[:-1], *shape[1:], shape[0])
    if target.shape != logits_shape:
        ignored = -100 if ignore_index is None else ignore_index
        checked_labels(logits_shape, target, ignored)
        target = jnp.where(target == ignored, -100, jnp.where(target < 0, shape[0], target))
    elif ignore_index is not None:
        raise UsageError("ignore_index has no meaning with probabilities as the target: leave it out")
    batched = input.ndim == 2
    x, y = (input, target) if batched else (input[None], target[None])
    chunk = len(x) if options is None else options.chunk_size(len(x), x.shape[-1], shape[0])
    dtype = input.dtype
    if options is not None:
        dtype = jnp.dtype(options.acc_dtype or accumulation_dtype(dtype))
    values, count = _rows(
        x, matrix, y, bias, weight, shape=shape, label_smoothing=label_smoothing, chunk=chunk, dtype=dtype
    )
    values = values if batched else values[0]
    return reduced(values, reduction, count).astype(input.dtype)


@partial(jax.jit, static_argnames=("shape", "label_smoothing", "chunk", "dtype"))
def _rows(
    input: Float[Array, "n i"],
    matrix: Float[Array, "i o"],
    target: Shaped[Array, "n ..."],
    bias: Float[Array, " o"] | None,
    weight: Float[Array, "..."] | None,
    *,
    shape: tuple[int, ...],
    label_smoothing: float,
    chunk: int,
    dtype: jnp.dtype,
) -> tuple[Float[Array, "n ..."], Shaped[Array, ""] | int]:
    """The loss of each row, and by what their mean divides; the logits of `chunk` rows exist at a time."""

    def rows(part: tuple[Array, Array]) -> tuple[Array, Array | int]:
        logits = jnp.matmul(part[0], matrix, preferred_element_type=dtype)
        logits = logits if bias is None else logits + bias.astype(dtype)
        logits = jnp.moveaxis(logits.reshape(-1, *shape), 1, -1)
        scale = None if weight is None else weight.astype(dtype)
        return entropy_rows(logits, part[1], scale, -100, label_smoothing)

    n = len(input)
    if chunk >= n:
        return rows((input, target))
    padding = -n % chunk

    def split(x: Array, fill: int) -> Array:
        widths = [(0, padding)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, widths, constant_values=fill).reshape(-1, chunk, *x.shape[1:])

    # The gradient computes the logits of a chunk anew.
    parts = split(input, 0), split(target, -100)
    values, counts = jax.lax.map(jax.checkpoint(rows), parts)
    values = values.reshape(-1, *values.shape[2:])[:n]
    soft = jnp.issubdtype(target.dtype, jnp.floating)
    return values, values.size if soft else counts.sum()


class LinearCrossEntropyLoss(WeightedLoss):
    """torch.nn.LinearCrossEntropyLoss: a linear layer and the cross-entropy of its logits.

    input (N, in_features) or (in_features,); labels (N, *out_features), or probabilities (N, *out_features, C),
    classes last. The layer's weight is `linear.weight`, with C * prod(out_features) outputs.

    Raises:
        UsageError: label_smoothing outside [0, 1], a weight that has not one number for each class.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        reduction: str = "mean",
        weight: Float[Array, "..."] | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
        rngs: nnx.Rngs,
    ):
        if weight is not None and weight.shape != (num_classes,):
            raise UsageError(f"weight of shape {weight.shape} must have the shape {(num_classes,)}")
        if not 0 <= label_smoothing <= 1:
            raise UsageError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
        super().__init__(weight=weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self.linear = Linear(in_features, math.prod(out_features, start=num_classes), bias=bias, rngs=rngs)
        self.options = options

    def __call__(self, input: Float[Array, "..."], target: Shaped[Array, "..."]) -> Float[Array, "..."]:
        matrix, bias = self.linear.weight[...], self.linear.bias
        shape = (self.num_classes, *self.out_features)
        torch_weight = matrix.T.reshape(*shape, -1)
        return linear_cross_entropy(
            input,
            torch_weight,
            target,
            linear_bias=None if bias is None else bias[...].reshape(shape),
            weight=optional_value(self.weight),
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )
