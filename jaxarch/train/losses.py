"""Losses under torch's names and reductions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxarch.nn.module import wide_dtype


def cross_entropy(
    logits: Float[Array, "*b c"],
    labels: Int[Array, "*b"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """torch.nn.functional.cross_entropy with the classes last: the mean over labels that count.

    If none counts the loss is 0, where torch gives NaN.
    """
    wide = logits.astype(wide_dtype(logits.dtype))
    log_p = jax.nn.log_softmax(wide)
    valid = labels != ignore_index
    loss = -jnp.take_along_axis(log_p, jnp.where(valid, labels, 0)[..., None], -1)[..., 0]
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    return jnp.where(valid, loss, 0).sum() / jnp.maximum(valid.sum(), 1).astype(loss.dtype)
