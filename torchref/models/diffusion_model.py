"""Denoising diffusion model: the forward process and the network that denoises. Ho et al. 2020, arXiv:2006.11239."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchref import nn
from torchref.models.diffusion_unet import DiffusionUNet


class DiffusionModel(nn.Module):
    """x (B, channels, image_size, image_size), t (B,) in [0, timesteps), labels (B,) -> the same shape as x.

    The call adds the noise of step t to x and denoises it: the prediction of that noise. Without `noise` the model
    draws it. `image_size` is a side or (H, W); images of another size are a ValueError. The betas are evenly
    spaced from 1e-4 to 0.02 (section 4). See `DiffusionUNet` for the other arguments.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        channels: int = 3,
        base_channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (1, 2),
        heads: int = 1,
        num_classes: int = 0,
        dropout: float = 0.0,
        norm_groups: int = 32,
        timesteps: int = 1000,
    ):
        super().__init__()
        side = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.image_size, self.timesteps, self.num_classes = side, timesteps, num_classes
        self.denoiser = DiffusionUNet(
            channels,
            base_channels,
            multipliers,
            blocks,
            attention_levels,
            heads,
            num_classes,
            dropout,
            norm_groups,
        )
        self.noise = nn.Noise()

    @property
    def beta_schedule(self) -> Tensor:
        """The variances of the forward steps (timesteps,)."""
        return torch.linspace(1e-4, 0.02, self.timesteps, dtype=torch.float64)

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The images x after t + 1 steps of noise: sqrt(a) x + sqrt(1 - a) noise, a the product of 1 - beta."""
        products = (1 - self.beta_schedule).cumprod(0)
        scales = (p.sqrt().to(t.device, x.dtype)[t][:, None, None, None] for p in (products, 1 - products))
        alpha, sigma = scales
        return alpha * x + sigma * noise

    def forward(
        self, x: Tensor, t: Tensor, noise: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        if (size := tuple(x.shape[2:])) != self.image_size:
            raise ValueError(f"images are {size}, the model was built for image_size {self.image_size}")
        noise = self.noise(x) if noise is None else noise
        return self.denoiser(self.q_sample(x, t, noise), t, labels)
