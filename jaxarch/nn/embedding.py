"""Tables of vectors that integers look up, one by one or in bags, with torch's names and checks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.module import Buffer, Module


class _Table(Module):
    """The base class of embeddings: the weight (num_embeddings, embedding_dim), N(0, 1) at first, and its look-up.

    `_weight` sets the weight, `_freeze` makes it a buffer. Gradients are dense: `sparse` has no effect.
    """

    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool

    def _set(
        self,
        size: tuple[int, int],
        padding_idx: int | None,
        weight: Float[Array, "n d"] | None,
        freeze: bool,
        rngs: nnx.Rngs,
    ) -> None:
        if min(size) < 0:
            raise UsageError(f"a table cannot have the size {size}")
        if padding_idx is not None and not -size[0] <= padding_idx < size[0]:
            raise DataError(f"padding_idx {padding_idx} is not a row of a table of {size[0]}")
        if weight is not None and weight.shape != size:
            raise DataError(f"a weight of shape {weight.shape} is not a table of {size}")
        self.num_embeddings, self.embedding_dim = size
        self.padding_idx = None if padding_idx is None else padding_idx % size[0]
        if weight is None:
            weight = init.normal(1.0)(rngs.params(), size)
            weight = weight if self.padding_idx is None else weight.at[self.padding_idx].set(0)
        self.weight: Any = Buffer(weight) if freeze else nnx.Param(weight)

    def _rows(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """The vectors of the ids."""
        check_ids(ids, self.num_embeddings)
        if self.max_norm is not None:
            self.weight[...] = _renormalized(self.weight[...], ids, self.max_norm, self.norm_type)
        weight = self.weight[...]
        if self.padding_idx is not None:
            # torch uses the row's value but gives it no gradient.
            row = weight[self.padding_idx]
            weight = weight.at[self.padding_idx].set(jax.lax.stop_gradient(row))
        # An id out of range gives NaN under jit: it is never clamped or wrapped in silence.
        rows = weight.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        if not self.scale_grad_by_freq:
            return rows
        counts = jnp.zeros(self.num_embeddings, rows.dtype).at[ids].add(1, mode="drop")
        return _with_gradient_over(rows, counts[ids][..., None])


class Embedding(_Table):
    """A table of vectors, N(0, 1) at first; the row `padding_idx` starts at zero and gets no gradient.

    ids (...,) in [0, num_embeddings) -> (..., embedding_dim). With `max_norm` each call first scales the rows it
    looks up to at most that `norm_type`-norm, in the weight itself, in eval mode too, as torch does.
    `scale_grad_by_freq` divides a row's gradient by how often the ids have it. Gradients are dense: `sparse` has no
    effect.

    Raises:
        UsageError: a negative size.
        DataError: padding_idx is not a row; in the call, ids that are not integers or out of range.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Float[Array, "n d"] | None = None,
        _freeze: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self._set((num_embeddings, embedding_dim), padding_idx, _weight, _freeze, rngs)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Float[Array, "n d"],
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> "Embedding":
        """An Embedding of these vectors (num_embeddings, embedding_dim); frozen, they are a buffer."""
        return cls(
            embeddings.shape[0],
            embeddings.shape[1],
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            embeddings,
            freeze,
            rngs=nnx.Rngs(0),
        )

    def __call__(self, input: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        return self._rows(input)


class EmbeddingBag(_Table):
    """The sum, mean or maximum of the vectors of each bag of ids; an empty bag is zero.

    ids (B, N) -> (B, embedding_dim), each row a bag; or ids (N,) with offsets (B,), where each bag begins, of which
    the last is the end if `include_last_offset`. Ids equal to padding_idx are left out. `per_sample_weights`, of the
    ids' shape, multiply the vectors of a sum. Other arguments: `Embedding`.

    Raises:
        UsageError: an unknown mode, a negative size; scale_grad_by_freq or sparse with "max", as in torch.
        DataError: as `Embedding`; in the call, offsets or weights that do not fit.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Float[Array, "n d"] | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        rngs: nnx.Rngs,
        _freeze: bool = False,
    ):
        if mode not in ("sum", "mean", "max"):
            raise unknown("mode", mode, ("sum", "mean", "max"))
        if mode == "max" and (scale_grad_by_freq or sparse):
            raise UsageError("mode 'max' takes neither scale_grad_by_freq nor sparse, as in torch")
        self._set((num_embeddings, embedding_dim), padding_idx, _weight, _freeze, rngs)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Float[Array, "n d"],
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> "EmbeddingBag":
        """An EmbeddingBag of these vectors (num_embeddings, embedding_dim); frozen, they are a buffer."""
        return cls(
            embeddings.shape[0],
            embeddings.shape[1],
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            embeddings,
            include_last_offset,
            padding_idx,
            rngs=nnx.Rngs(0),
            _freeze=freeze,
        )

    def __call__(
        self,
        input: Int[Array, "*shape"],
        offsets: Int[Array, " starts"] | None = None,
        per_sample_weights: Float[Array, "*weights"] | None = None,
    ) -> Float[Array, "bags d"]:
        ids = input
        self._check(ids, offsets, per_sample_weights)
        if offsets is None:
            count, bags = ids.shape[0], jnp.arange(ids.shape[0]).repeat(ids.shape[1])
        else:
            count = offsets.shape[0] - self.include_last_offset
            bags = jnp.searchsorted(offsets, jnp.arange(ids.shape[0]), side="right") - 1
        ids = ids.reshape(-1)
        rows, kept = self._rows(ids), ids != (-1 if self.padding_idx is None else self.padding_idx)
        if self.mode == "max":
            return _largest(rows, jnp.where(kept, bags, count), count)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.reshape(-1, 1)
        sums = jax.ops.segment_sum(jnp.where(kept[:, None], rows, 0), bags, count)
        if self.mode == "sum":
            return sums
        return sums / jnp.maximum(jax.ops.segment_sum(kept.astype(rows.dtype), bags, count), 1)[:, None]

    def _check(self, ids: Array, offsets: Array | None, weights: Array | None) -> None:
        if ids.ndim not in (1, 2) or (ids.ndim == 1) != (offsets is not None):
            raise DataError(f"bags are ids (B, N), or ids (N,) with offsets, not {ids.shape}")
        if offsets is not None and not isinstance(offsets, jax.core.Tracer):
            starts = np.asarray(offsets)
            if not starts.size or starts[0] or starts[-1] > len(ids) or (np.diff(starts) < 0).any():
                raise DataError(f"offsets must rise from 0 to at most {len(ids)}, not {starts.tolist()}")
            if self.include_last_offset and starts[-1] < len(ids):
                raise DataError(f"the last offset {starts[-1]} must be the number of ids {len(ids)}")
        if weights is not None and self.mode != "sum":
            raise DataError(f"per_sample_weights need mode 'sum', not {self.mode!r}")
        if weights is not None and weights.shape != ids.shape:
            raise DataError(f"per_sample_weights {weights.shape} must have the ids' shape {ids.shape}")


def _largest(rows: Float[Array, "n d"], bags: Int[Array, " n"], count: int) -> Float[Array, "bags d"]:
    """The maximum over each bag, element by element; its gradient goes to the first of equal values."""
    largest = jax.ops.segment_max(jax.lax.stop_gradient(rows), bags, count + 1)
    places = jnp.where(rows == largest[bags], jnp.arange(len(rows))[:, None], len(rows))
    first = jax.ops.segment_min(places, bags, count + 1)[:count]
    chosen = rows.at[first, jnp.arange(rows.shape[1])].get(mode="fill", fill_value=jnp.nan)
    sizes = jax.ops.segment_sum(jnp.ones_like(bags), bags, count + 1)[:count]
    return jnp.where(sizes[:, None] > 0, chosen, 0)


@jax.custom_jvp
def _with_gradient_over(x: Float[Array, "*shape"], divisor: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x, its gradient divided by the divisor."""
    return x


@_with_gradient_over.defjvp
def _with_gradient_over_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return primals[0], tangents[0] / primals[1]


@jax.custom_jvp
def _replaced(weight: Float[Array, "n d"], value: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The value, with the gradient of the weight: what changing the weight in place, without a gradient, is."""
    return value


@_replaced.defjvp
def _replaced_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[1], tangents[0]


def _renormalized(
    weight: Float[Array, "n d"], ids: Int[Array, "..."], max_norm: float, norm_type: float
) -> Float[Array, "n d"]:
    """The weight, those rows that the ids name scaled to a norm of at most max_norm."""
    value = jax.lax.stop_gradient(weight)
    norms = jnp.linalg.norm(value, norm_type, 1, keepdims=True)
    named = jnp.zeros((len(value), 1), bool).at[ids].set(True, mode="drop")
    scaled = value * (max_norm / (norms + 1e-7))
    return _replaced(weight, jnp.where(named & (norms > max_norm), scaled, value))


def check_ids(ids: Int[Array, "..."], size: int, what: str = "id") -> None:
    """Refuse ids outside [0, size), as torch does. Under jit values are unknown and nothing is checked.

    Raises:
        DataError: naming the first id out of range and the size; ids that are not integers, under jit too.
    """
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise DataError(f"every {what} must be an integer, not {ids.dtype}")
    if isinstance(ids, jax.core.Tracer) or ids.size == 0:
        return
    values = np.asarray(ids)
    bad = values[(values < 0) | (values >= size)]
    if bad.size:
        raise DataError(f"{what} {bad[0]} is out of range: it must be in [0, {size})")
