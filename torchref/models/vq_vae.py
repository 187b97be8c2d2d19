"""Autoencoder with a discrete latent. van den Oord et al. 2017, arXiv:1711.00937."""

from torch import Tensor

from torchref import nn


class VQVAE(nn.Module):
    """Images (B, channels, H, W) -> (reconstruction, loss, ids, perplexity, usage).

    The reconstruction has the images' shape; `loss` is the quantizer's, to be added to its error; `ids` (B,
    HW / 16) are the codes, row by row. `revival` (codes,) in [0, 1) picks the vectors that replace dead codes
    (`revive_below`). H and W that are no multiples of 4 are a ValueError.
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
    ):
        super().__init__()
        width = hidden_channels
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width // 2, 4, 2, 1),
            nn.Activation("relu"),
            nn.Conv2d(width // 2, width, 4, 2, 1),
            nn.Activation("relu"),
            nn.Conv2d(width, width, 3, 1, 1),
            *(Residual(width, residual_channels) for _ in range(residual_layers)),
            nn.Activation("relu"),
            nn.Conv2d(width, code_dim, 1),
        )
        self.quantizer = nn.VectorQuantizer(
            codes, code_dim, commitment, ema, decay, revive_below=revive_below
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, width, 3, 1, 1),
            *(Residual(width, residual_channels) for _ in range(residual_layers)),
            nn.Activation("relu"),
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1),
            nn.Activation("relu"),
            nn.ConvTranspose2d(width // 2, channels, 4, 2, 1),
        )

    def decode(self, ids: Tensor) -> Tensor:
        """A map of codes (B, H / 4, W / 4) -> images (B, channels, H, W)."""
        return self.decoder(self.quantizer.lookup(ids))

    def forward(
        self, x: Tensor, revival: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(f"the height and width of x {tuple(x.shape)} must be multiples of 4")
        quantized = self.quantizer(self.encoder(x), revival)
        return (
            self.decoder(quantized.values),
            quantized.loss,
            quantized.ids,
            quantized.perplexity,
            quantized.usage,
        )


class Residual(nn.Module):
    """x + a narrow 3x3 and a 1x1 convolution of x: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Activation("relu"),
            nn.Conv2d(channels, hidden_channels, 3, 1, 1),
            nn.Activation("relu"),
            nn.Conv2d(hidden_channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)
