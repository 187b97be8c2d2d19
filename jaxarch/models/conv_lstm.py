"""An LSTM over images, with convolutions for its products: Shi et al. 2015, arXiv:1506.04214.

Without the paper's peepholes, whose weights would fix the size of the images.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxarch import nn
from jaxarch.errors import DataError, UsageError

Map = Float[Array, "b h w d"]


class ConvLSTMCell(nn.Module):
    """One layer. Gates in the order i, f, g, o, as in torch's LSTM."""

    def __init__(self, input_channels: int, hidden_channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        gates, pad = 4 * hidden_channels, kernel_size // 2
        self.conv_ih = nn.Conv2d(input_channels, gates, kernel_size, padding=pad, rngs=rngs)
        self.conv_hh = nn.Conv2d(hidden_channels, gates, kernel_size, padding=pad, bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        state: tuple[Map, Map],
    ) -> tuple[Float[Array, "b t h w d"], tuple[Map, Map]]:
        """x (B, T, H, W, C), state (h, c) of (B, H, W, hidden_channels) -> h of every step, final state."""
        # The input's convolution does not depend on the state: it is one call for all steps.
        products = self.conv_ih(x.reshape(-1, *x.shape[2:]))
        products = products.reshape(*x.shape[:2], *products.shape[1:])

        def step(state: tuple[Map, Map], product: Float[Array, "b h w g"]) -> tuple[tuple[Map, Map], Map]:
            h, c = state
            i, f, g, o = jnp.split(product + self.conv_hh(h), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        state, outputs = lax.scan(step, state, products.swapaxes(0, 1))
        return outputs.swapaxes(0, 1), state


class ConvLSTM(nn.Module):
    """(B, T, H, W, C), state or None -> (B, T, H, W, hidden_channels) of the last layer, final state.

    The state is (h, c), each (num_layers, B, H, W, hidden_channels).

    Raises:
        UsageError: an even kernel_size.
        DataError: a state of another shape.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        if kernel_size % 2 == 0:
            raise UsageError(f"kernel_size {kernel_size} must be odd, so that images keep their size")
        self.hidden_channels = hidden_channels
        self.cells = nn.ModuleList(
            ConvLSTMCell(hidden_channels if i else input_channels, hidden_channels, kernel_size, rngs=rngs)
            for i in range(num_layers)
        )

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        state: tuple[Float[Array, "l n hs ws d"], Float[Array, "l n hs ws d"]] | None = None,
    ) -> tuple[Float[Array, "b t h w d"], tuple[Float[Array, "l b h w d"], Float[Array, "l b h w d"]]]:
        shape = (len(self.cells), x.shape[0], *x.shape[2:4], self.hidden_channels)
        if state is None:
            state = (jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype))
        elif state[0].shape != shape:
            raise DataError(f"the state has shape {state[0].shape}, the model needs {shape}")
        final = []
        for cell, h, c in zip(self.cells, *state, strict=True):
            x, last = cell(x, (h, c))
            final.append(last)
        h, c = (jnp.stack(leaves) for leaves in zip(*final, strict=True))
        return x, (h, c)
