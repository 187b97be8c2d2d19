"""torch.nn.utils.parametrizations: weight norm, spectral norm and orthogonal matrices.

`dim` counts the axes of torch's layout of the weight, of which the first is the outputs.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError, unknown
from jaxarch.nn import init
from jaxarch.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from jaxarch.nn.module import Buffer, Module
from jaxarch.nn.utils.computed import in_torch_layout
from jaxarch.nn.utils.parametrize import register_parametrization

Layer = TypeVar("Layer", bound=nnx.Module)
MAPS = ("matrix_exp", "cayley", "householder")


def weight_norm(module: Layer, name: str = "weight", dim: int | None = 0) -> Layer:
    """Give a layer's weight as `original0`, its norms along `dim`, times `original1` / its norms; the layer itself.

    Salimans and Kingma 2016, arXiv:1602.07868. `dim` None takes one norm of the whole weight.

    Raises:
        UsageError: the layer has no such parameter.
    """
    return register_parametrization(module, name, _WeightNorm(dim))


def spectral_norm(
    module: Layer,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    rngs: nnx.Rngs,
) -> Layer:
    """Divide a layer's weight by its largest singular value, which power iteration approximates; the layer itself.

    Miyato et al. 2018, arXiv:1802.05957. In train mode the two vectors are improved whenever the layer reads the
    weight. `dim` None is the axis of the outputs: 0, or 1 of transposed convolutions.

    Raises:
        UsageError: the layer has no such parameter, or n_power_iterations is not positive.
    """
    weight = in_torch_layout(module, name)
    dim = outputs_dim(module) if dim is None else dim
    return register_parametrization(module, name, _SpectralNorm(weight, n_power_iterations, dim, eps, rngs))


def orthogonal(
    module: Layer,
    name: str = "weight",
    orthogonal_map: str | None = None,
    *,
    use_trivialization: bool = True,
    rngs: nnx.Rngs,
) -> Layer:
    """Keep a layer's weight, the matrices of its last two axes, orthogonal; the layer itself.

    Lezcano-Casado 2019, arXiv:1909.09501. The map is "matrix_exp" (the default of square matrices), "cayley" or
    "householder" (of others). Trivialization multiplies by a fixed orthogonal `base`, so that the weight, made
    orthogonal, stays what it was.

    Raises:
        UsageError: the layer has no such parameter of two axes or more; an unknown map.
    """
    weight = in_torch_layout(module, name)
    if weight.ndim < 2:
        raise UsageError(f"{name} of shape {weight.shape} is no matrix")
    if orthogonal_map is None:
        orthogonal_map = "matrix_exp" if weight.shape[-2] == weight.shape[-1] else "householder"
    if orthogonal_map not in MAPS:
        raise unknown("orthogonal map", orthogonal_map, MAPS)
    return register_parametrization(
        module, name, _Orthogonal(weight, orthogonal_map, use_trivialization, rngs)
    )


def outputs_dim(module: nnx.Module) -> int:
    """The axis of the outputs in torch's layout of a layer's weight."""
    return 1 if isinstance(module, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d) else 0


def norms_except(weight: Float[Array, "*shape"], dim: int | None) -> Float[Array, "*kept"]:
    """The norms of a weight over all axes but one, which is kept; over all, without axes, for None."""
    if dim in (None, -1):
        return jnp.sqrt(jnp.square(weight).sum())
    axes = tuple(i for i in range(weight.ndim) if i != dim)
    return jnp.sqrt(jnp.square(weight).sum(axes, keepdims=True))


def matrix_of(weight: Float[Array, "*shape"], dim: int) -> Float[Array, "h w"]:
    """A weight with one axis as rows and the others as columns."""
    return jnp.moveaxis(weight, dim, 0).reshape(weight.shape[dim], -1)


def normalize(x: Float[Array, " n"], eps: float) -> Float[Array, " n"]:
    """x / max(norm of x, eps)."""
    return x / jnp.maximum(jnp.linalg.norm(x), eps)


class _WeightNorm(Module):
    def __init__(self, dim: int | None):
        self.dim = dim

    def __call__(
        self, norms: Float[Array, "*kept"], weight: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return weight * (norms / norms_except(weight, self.dim))

    def right_inverse(self, weight: Float[Array, "*shape"]) -> tuple[Array, Array]:
        return norms_except(weight, self.dim), weight


class _SpectralNorm(Module):
    def __init__(
        self, weight: Float[Array, "*shape"], n_power_iterations: int, dim: int, eps: float, rngs: nnx.Rngs
    ):
        if n_power_iterations <= 0:
            raise UsageError(f"n_power_iterations must be positive, not {n_power_iterations}")
        if not -weight.ndim <= dim < weight.ndim:
            raise UsageError(f"dim {dim} is not an axis of a weight of shape {weight.shape}")
        self.dim, self.eps = dim % weight.ndim, eps
        self.n_power_iterations, self.use_running_average = n_power_iterations, False
        if weight.ndim > 1:
            matrix = matrix_of(weight, self.dim)
            u, v = (normalize(init.normal(1.0)(rngs.params(), (n,)), eps) for n in matrix.shape)
            self._u, self._v = Buffer(u.astype(weight.dtype)), Buffer(v.astype(weight.dtype))
            self._iterate(matrix, 15)

    def __call__(self, weight: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if weight.ndim == 1:
            return normalize(weight, self.eps)
        matrix = matrix_of(weight, self.dim)
        if not self.use_running_average:
            self._iterate(matrix, self.n_power_iterations)
        return weight / (self._u[...] @ (matrix @ self._v[...]))

    def _iterate(self, matrix: Float[Array, "h w"], count: int) -> None:
        fixed = jax.lax.stop_gradient(matrix)
        for _ in range(count):
            self._u[...] = normalize(fixed @ self._v[...], self.eps)
            self._v[...] = normalize(fixed.T @ self._u[...], self.eps)

    def right_inverse(self, value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return value


class _Orthogonal(Module):
    def __init__(self, weight: Float[Array, "*batch n k"], kind: str, trivialize: bool, rngs: nnx.Rngs):
        self.kind = kind
        if trivialize:
            self.base = Buffer(_completed(_tall(weight), rngs))

    def __call__(self, x: Float[Array, "*batch n k"]) -> Float[Array, "*batch n k"]:
        tall = _tall(x)
        q = _householder(tall) if self.kind == "householder" else _of_skew(tall, self.kind)
        q = self.base[...] @ q if hasattr(self, "base") else q
        return q if tall.shape == x.shape and x.shape[-2] >= x.shape[-1] else q.mT

    def right_inverse(self, value: Float[Array, "*batch n k"]) -> Float[Array, "*batch n k"]:
        if hasattr(self, "base"):
            n, k = value.shape[-2:]
            return jnp.zeros_like(value) - jnp.eye(n, k, dtype=value.dtype)
        if self.kind != "householder":
            return value  # as torch: no right inverse is known, the value itself is the start
        x = _reflectors(_tall(value))
        return x if value.shape[-2] >= value.shape[-1] else x.mT


def _tall(x: Float[Array, "*batch n k"]) -> Array:
    return x if x.shape[-2] >= x.shape[-1] else x.mT


def _of_skew(x: Float[Array, "*batch n k"], kind: str) -> Float[Array, "*batch n k"]:
    """The first k columns of the exponential, or the Cayley transform, of the skew-symmetric matrix of x."""
    n, k = x.shape[-2:]
    square = jnp.pad(jnp.tril(x), [(0, 0)] * (x.ndim - 1) + [(0, n - k)])
    skew = square - square.mT
    if kind == "matrix_exp":
        return jax.scipy.linalg.expm(skew)[..., :k]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=x.dtype), skew.shape)
    return jnp.linalg.solve(eye - 0.5 * skew, eye + 0.5 * skew)[..., :k]


def _householder(x: Float[Array, "*batch n k"]) -> Float[Array, "*batch n k"]:
    """The first k columns of the product of the reflections in the columns of x below the diagonal."""
    n, k = x.shape[-2:]
    below = jnp.tril(x, -1)
    scales = 2 / (1 + jnp.square(below).sum(-2))
    columns = jnp.moveaxis(below + jnp.eye(n, k, dtype=x.dtype), -1, 0)

    def reflect(q: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        v, scale = column
        return q - (scale[..., None] * v)[..., None] * jnp.einsum("...n,...nk->...k", v, q)[
            ..., None, :
        ], None

    start = jnp.broadcast_to(jnp.eye(n, k, dtype=x.dtype), x.shape)
    q, _ = jax.lax.scan(reflect, start, (columns, jnp.moveaxis(scales, -1, 0)), reverse=True)
    signs = jnp.trunc(jax.lax.stop_gradient(jnp.diagonal(x, axis1=-2, axis2=-1)))
    return q * signs[..., None, :]


def _completed(q: Float[Array, "*batch n k"], rngs: nnx.Rngs) -> Float[Array, "*batch n n"]:
    """An orthogonal matrix whose first columns are those of q, made orthogonal where they are not."""
    n, k = q.shape[-2:]
    if n > k:
        noise = jax.random.normal(rngs.params(), (*q.shape[:-1], n - k), q.dtype)
        return _made_orthogonal(jnp.concatenate((q, noise), -1))
    error = jnp.abs(q.mT @ q - jnp.eye(n, dtype=q.dtype)).max()
    return jnp.where(error <= 10 * n * jnp.finfo(q.dtype).eps, q, _made_orthogonal(q))


def _made_orthogonal(x: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    q, r = jnp.linalg.qr(x)
    return q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def _reflectors(q: Float[Array, "*batch n k"]) -> Float[Array, "*batch n k"]:
    """The columns of reflections whose product begins with q made orthogonal, and signs on the diagonal."""
    reflectors, scales = _geqrf(q)
    diagonal = jnp.sign(jnp.diagonal(reflectors, axis1=-2, axis2=-1))
    diagonal = jnp.where(scales == 0, -diagonal, diagonal)
    k = q.shape[-1]
    index = jnp.arange(k)
    return reflectors.at[..., index, index].set(diagonal)


def _geqrf(x: Float[Array, "*batch n k"]) -> tuple[Any, Any]:
    h, taus = jnp.linalg.qr(x, mode="raw")
    return h.mT, taus
