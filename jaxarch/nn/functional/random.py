"""Dropout under torch.nn.functional's names; what is drawn comes from `rngs`, an argument that torch has not."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.errors import UsageError
from jaxarch.nn import dropout as layers

Values = Float[Array, "..."]
# Random keys of a model (their "dropout" stream), or one key; None where nothing is drawn.
Randomness = nnx.Rngs | Array | None


def random_keys(rngs: Randomness, name: str) -> Array:
    """A key.

    Raises:
        UsageError: there are none.
    """
    if rngs is None:
        raise UsageError(f"{name} draws random numbers: give it rngs=, an nnx.Rngs or a key")
    return rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs


def uniform(
    rngs: Randomness, name: str, shape: tuple[int, ...], dtype: jax.typing.DTypeLike, low: float, high: float
) -> Values:
    """Numbers from U(low, high)."""
    return jax.random.uniform(random_keys(rngs, name), shape, dtype, low, high)


def _dropped(cls: type[layers.Dropout], input: Values, p: float, training: bool, rngs: Randomness) -> Values:
    """What the layer gives in train or eval mode."""
    if not 0 <= p <= 1:
        raise UsageError(f"dropout probability must be in [0, 1], not {p}")
    if not training or p == 0:
        return input
    return cls(p, rngs=nnx.Rngs(random_keys(rngs, cls.__name__.lower())))(input)


def dropout(
    input: Values, p: float = 0.5, training: bool = True, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """Zero each element with probability p and scale the rest by 1 / (1 - p). Any shape.

    Raises:
        UsageError: p outside [0, 1]; training without `rngs`.
    """
    return _dropped(layers.Dropout, input, p, training, rngs)


def dropout1d(
    input: Values, p: float = 0.5, training: bool = True, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """`dropout` of whole channels of (B, T, C) or (T, C)."""
    return _dropped(layers.Dropout1d, input, p, training, rngs)


def dropout2d(
    input: Values, p: float = 0.5, training: bool = True, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """`dropout` of whole channels of (B, H, W, C)."""
    return _dropped(layers.Dropout2d, input, p, training, rngs)


def dropout3d(
    input: Values, p: float = 0.5, training: bool = True, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """`dropout` of whole channels of (B, D, H, W, C) or (D, H, W, C)."""
    return _dropped(layers.Dropout3d, input, p, training, rngs)


def alpha_dropout(
    input: Values, p: float = 0.5, training: bool = False, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """Dropout to SELU's lower limit that keeps mean and variance (Klambauer et al. 2017). Any shape."""
    return _dropped(layers.AlphaDropout, input, p, training, rngs)


def feature_alpha_dropout(
    input: Values, p: float = 0.5, training: bool = False, inplace: bool = False, *, rngs: Randomness = None
) -> Values:
    """`alpha_dropout` of whole channels of (B, ..., C)."""
    return _dropped(layers.FeatureAlphaDropout, input, p, training, rngs)
