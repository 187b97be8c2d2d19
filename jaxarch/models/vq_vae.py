"""Autoencoder with a discrete latent. van den Oord et al. 2017, arXiv:1711.00937."""

from flax import nnx
from jaxtyping import Array, Float, Int

from jaxarch import nn
from jaxarch.errors import DataError


class VQVAE(nn.Module):
    """Images (B, H, W, channels) -> (reconstruction, loss, ids, perplexity, usage).

    The reconstruction has the images' shape; `loss` is the quantizer's, to be added to its error; `ids` (B,
    HW / 16) are the codes, row by row. `revival` (codes,) in [0, 1) picks the vectors that replace dead codes
    (`revive_below`).

    Raises:
        DataError: in the call, H or W is no multiple of 4.
    """

    def __init__(
        self,
        channels: int = 3,
        hidden_channels: int = 128,
        residual_channels: int = 32,
        residual_layers: int = 2,
        codes: int = 512,
        code_dim: int = 64,
        commitment: float = 0.25,
        ema: bool = True,
        decay: float = 0.99,
        revive_below: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        width = hidden_channels
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, 2, 1, rngs=rngs),
            nn.Activation("relu"),
            nn.Conv2d(width // 2, width, 4, 2, 1, rngs=rngs),
            nn.Activation("relu"),
            nn.Conv2d(width, width, 3, 1, 1, rngs=rngs),
            *(Residual(width, residual_channels, rngs=rngs) for _ in range(residual_layers)),
            nn.Activation("relu"),
            nn.Conv2d(width, code_dim, 1, rngs=rngs),
        )
        self.quantizer = nn.VectorQuantizer(
            codes, code_dim, commitment, ema, decay, revive_below=revive_below, rngs=rngs
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, width, 3, 1, 1, rngs=rngs),
            *(Residual(width, residual_channels, rngs=rngs) for _ in range(residual_layers)),
            nn.Activation("relu"),
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1, rngs=rngs),
            nn.Activation("relu"),
            nn.ConvTranspose2d(width // 2, channels, 4, 2, 1, rngs=rngs),
        )

    def decode(self, ids: Int[Array, "b u v"]) -> Float[Array, "b h w c"]:
        """A map of codes (B, H / 4, W / 4) -> images (B, H, W, channels)."""
        return self.decoder(self.quantizer.lookup(ids))

    def __call__(
        self, x: Float[Array, "b h w c"], revival: Float[Array, " codes"] | None = None
    ) -> tuple[
        Float[Array, "b h w c"], Float[Array, ""], Int[Array, "b n"], Float[Array, ""], Float[Array, ""]
    ]:
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise DataError(f"the height and width of x {x.shape} must be multiples of 4")
        quantized = self.quantizer(self.encoder(x), revival)
        return (
            self.decoder(quantized.values),
            quantized.loss,
            quantized.ids,
            quantized.perplexity,
            quantized.usage,
        )


class Residual(nn.Module):
    """x + a narrow 3x3 and a 1x1 convolution of x: (B, H, W, C) -> the same."""

    def __init__(self, channels: int, hidden_channels: int, *, rngs: nnx.Rngs):
        self.block = nn.Sequential(
            nn.Activation("relu"),
            nn.Conv2d(channels, hidden_channels, 3, 1, 1, rngs=rngs),
            nn.Activation("relu"),
            nn.Conv2d(hidden_channels, channels, 1, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.block(x)
