"""The CTC loss: label sequences without an alignment to the input; a function and a class under torch's names."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxarch.errors import DataError, UsageError
from jaxarch.nn.kernels.ctc import ctc_nll
from jaxarch.nn.kernels.dtypes import accumulation_dtype
from jaxarch.nn.loss.reduction import Loss, reduced, reduction_name, refuse_where

Lengths = Shaped[Array, "..."] | Sequence[int] | int


def ctc_loss(
    log_probs: Float[Array, "..."],
    targets: Shaped[Array, "..."],
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Float[Array, "..."]:
    """torch.nn.functional.ctc_loss: minus the log-probability of each target sequence (Graves et al. 2006).

    log_probs (T, N, C), the time first, as in torch; targets (N, S), or one after the other (sum of target_lengths,);
    the lengths (N,), arrays or numbers. Without a batch axis (T, C), (S,), () and (). "mean" divides each by the
    length of its target first. The gradient is torch's: it assumes that log_probs come from a log-softmax.

    Raises:
        DataError: shapes that do not fit; (not under jit) a length or a label out of range.
        UsageError: a blank outside [0, C), unknown reduction.
    """
    reduction = reduction_name(None, None, reduction)
    batched = log_probs.ndim == 3
    if log_probs.ndim not in (2, 3):
        raise DataError(f"log_probs of shape {log_probs.shape} must be (T, N, C) or (T, C)")
    x = log_probs if batched else log_probs[:, None]
    if not 0 <= blank < x.shape[-1]:
        raise UsageError(f"blank {blank} must be one of the {x.shape[-1]} classes")
    lengths, label_lengths = (_lengths(v, x.shape[1]) for v in (input_lengths, target_lengths))
    labels = _rows(targets, label_lengths)
    _check(x, labels, lengths, label_lengths)
    upcast = x.astype(accumulation_dtype(x.dtype))
    values = ctc_nll(upcast, labels, lengths, label_lengths, blank, zero_infinity).astype(x.dtype)
    if reduction == "mean":
        values = values / jnp.maximum(label_lengths, 1).astype(values.dtype)
    return reduced(values if batched else values[0], reduction)


def _lengths(lengths: Lengths, rows: int) -> Int[Array, " n"]:
    values = jnp.asarray(lengths).reshape(-1)
    if values.shape != (rows,) or not jnp.issubdtype(values.dtype, jnp.integer):
        raise DataError(
            f"lengths {values.dtype} {values.shape} must be integers, one for each of {rows} rows"
        )
    return values


def _rows(targets: Shaped[Array, "..."], lengths: Int[Array, " n"]) -> Int[Array, "n s"]:
    """The targets as rows (N, S); those that lie one after the other are taken apart."""
    if targets.ndim > 2 or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise DataError(
            f"targets {targets.dtype} {targets.shape} must be integers (N, S) or (sum of lengths,)"
        )
    if targets.ndim == 2:
        if len(targets) != len(lengths):
            raise DataError(f"targets of shape {targets.shape} must have one row for each of {len(lengths)}")
        return targets
    known = not isinstance(lengths, jax.core.Tracer)
    longest = int(np.max(lengths, initial=0)) if known else targets.size
    if known and targets.size < int(np.sum(lengths)):
        raise DataError(f"targets hold {targets.size} labels, the target_lengths add up to {np.sum(lengths)}")
    index = (jnp.cumsum(lengths) - lengths)[:, None] + jnp.arange(longest, dtype=lengths.dtype)
    return targets.at[index].get(mode="fill", fill_value=0)


def _check(
    log_probs: Float[Array, "t n c"],
    labels: Int[Array, "n s"],
    lengths: Int[Array, " n"],
    label_lengths: Int[Array, " n"],
) -> None:
    steps, _, classes = log_probs.shape
    refuse_where(
        (lengths < 0) | (lengths > steps), f"an input length is out of range: it must be in [0, {steps}]"
    )
    most = labels.shape[-1]
    refuse_where(
        (label_lengths < 0) | (label_lengths > most),
        f"a target length is out of range: it must be in [0, {most}]",
    )
    counted = jnp.arange(most) < label_lengths[:, None]
    outside = counted & ((labels < 0) | (labels >= classes))
    refuse_where(outside, f"a label is out of range: it must be in [0, {classes})")


class CTCLoss(Loss):
    """torch.nn.CTCLoss of log_probs (T, N, C), the time first, and targets (N, S) or one after the other.

    Raises:
        UsageError: unknown reduction.
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False):
        super().__init__(reduction=reduction)
        self.blank, self.zero_infinity = blank, zero_infinity

    def __call__(
        self,
        log_probs: Float[Array, "..."],
        targets: Shaped[Array, "..."],
        input_lengths: Lengths,
        target_lengths: Lengths,
    ) -> Float[Array, "..."]:
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
        )
