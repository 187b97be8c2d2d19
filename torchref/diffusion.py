"""Diffusion: schedules, the forward process, and samplers that take their noise as an argument.

Ho et al. 2020, arXiv:2006.11239 (DDPM); Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine schedule); Song et al.
2021, arXiv:2010.02502 (DDIM); Salimans and Ho 2022, arXiv:2202.00512 (v-prediction); Ho and Salimans 2022,
arXiv:2207.12598 (classifier-free guidance).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Predictor = Callable[[Tensor, Tensor], Tensor]

PREDICTIONS = ("epsilon", "v")


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """Evenly spaced from `first` to `last` (Ho et al., section 4): (steps,)."""
    return np.linspace(first, last, steps)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """Betas whose products are cos^2 ((t / steps + s) / (1 + s) pi / 2), cut at `largest`: (steps,).

    Nichol and Dhariwal, equation 17.
    """
    t = np.arange(steps + 1) / steps
    products = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - products[1:] / products[:-1], largest)


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule and what the model predicts. An unknown name is a ValueError.

    Images are (B, C, H, W), or any shape that begins with the batch; times are (B,) integers in [0, steps).
    """

    steps: int = 1000
    schedule: str = "linear"
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        for value, known in ((self.schedule, SCHEDULES), (self.prediction, PREDICTIONS)):
            if value not in known:
                raise ValueError(f"unknown {value!r}: known: {', '.join(known)}")

    @property
    def betas(self) -> np.ndarray:
        """The variances of the forward steps: (steps,) in float64."""
        return SCHEDULES[self.schedule](self.steps)

    @property
    def products(self) -> np.ndarray:
        """alpha bar: the products of 1 - beta up to each step, (steps,) in float64."""
        return np.cumprod(1 - self.betas)

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The images x after t + 1 steps of noise: sqrt(a) x + sqrt(1 - a) noise."""
        alpha, sigma = self.scales(t, x)
        return alpha * x + sigma * noise

    def target(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The model's target: the noise, or v = sqrt(a) noise - sqrt(1 - a) x."""
        alpha, sigma = self.scales(t, x)
        return noise if self.prediction == "epsilon" else alpha * noise - sigma * x

    def split(self, x: Tensor, t: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """(image, noise) that the model's output predicts for the noisy x."""
        alpha, sigma = self.scales(t, x)
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, sigma * x + alpha * output

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a) and sqrt(1 - a) at t (B,), in a shape and dtype that scale `like` (B, ...)."""
        products = self.products
        return row_of(np.sqrt(products), t, like), row_of(np.sqrt(1 - products), t, like)


def ddpm_sample(
    diffusion: Diffusion, predict: Predictor, x: Tensor, noise: Tensor, clip: float | None = None
) -> Tensor:
    """Images from the noise x (B, ...), by every step of the reverse process.

    noise (steps, B, ...) is the noise of each step in order; the last is not used. The variance is that of
    the posterior. `clip` bounds the image that each step predicts.
    """
    betas, products = diffusion.betas, diffusion.products
    previous = np.append(1.0, products[:-1])
    image_coef = betas * np.sqrt(previous) / (1 - products)
    x_coef = (1 - previous) * np.sqrt(1 - betas) / (1 - products)
    sigma = np.sqrt(betas * (1 - previous) / (1 - products))
    for step, i in enumerate(reversed(range(diffusion.steps))):
        t = torch.full((len(x),), i, device=x.device)
        image, _ = clipped(diffusion, x, t, predict(x, t), clip)
        x = row_of(image_coef, t, x) * image + row_of(x_coef, t, x) * x + row_of(sigma, t, x) * noise[step]
    return x


def ddim_sample(
    diffusion: Diffusion,
    predict: Predictor,
    x: Tensor,
    steps: int = 50,
    eta: float = 0.0,
    noise: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """Images from the noise x (B, ...), by `steps` steps evenly spread over the schedule.

    eta 0 is deterministic; otherwise noise (steps, B, ...) is needed, and without it there is a ValueError.
    """
    times = ddim_times(diffusion, steps)
    if eta > 0 and noise is None:
        raise ValueError("eta needs the noise of every step")
    products, following = ddim_products(diffusion, times)
    sigma = eta * np.sqrt((1 - following) / (1 - products) * (1 - products / following))
    for step, i in enumerate(times):
        t = torch.full((len(x),), int(i), device=x.device)
        index = torch.full_like(t, step)
        image, epsilon = clipped(diffusion, x, t, predict(x, t), clip)
        x = (
            row_of(np.sqrt(following), index, x) * image
            + row_of(np.sqrt(1 - following - sigma**2), index, x) * epsilon
        )
        if noise is not None:
            x = x + row_of(sigma, index, x) * noise[step]
    return x


def guided(model: Callable[..., Tensor], labels: Tensor, null: int, scale: float) -> Predictor:
    """Classifier-free guidance: n + scale (c - n), with c the model's output for the labels (B,), n for no class.

    scale 1 is the conditional model (guidance off), 0 the unconditional one.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        no_class = torch.full_like(labels, null)
        both = model(torch.cat((x, x)), torch.cat((t, t)), torch.cat((labels, no_class)))
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return predict


def drop_labels(labels: Tensor, uniform: Tensor, rate: float, null: int) -> Tensor:
    """labels (B,) with the null class where `uniform` (B,) in [0, 1) is below the rate."""
    return torch.where(uniform < rate, torch.full_like(labels, null), labels)


def ddim_times(diffusion: Diffusion, steps: int) -> np.ndarray:
    """The times that DDIM visits, from the last to 0. More steps than the schedule has are a ValueError."""
    if not 0 < steps <= diffusion.steps:
        raise ValueError(f"DDIM takes 1 to {diffusion.steps} steps, not {steps}")
    return np.linspace(diffusion.steps - 1, 0, steps).round().astype(int)


def ddim_products(diffusion: Diffusion, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha bar at the times, and at the times after each; after the last it is 1."""
    products = diffusion.products[times]
    return products, np.append(products[1:], 1.0)


def clipped(
    diffusion: Diffusion, x: Tensor, t: Tensor, output: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """(image, noise) with the image clipped to [-clip, clip] and the noise that corresponds to it."""
    image, noise = diffusion.split(x, t, output)
    if clip is None:
        return image, noise
    image = image.clamp(-clip, clip)
    alpha, sigma = diffusion.scales(t, x)
    return image, (x - alpha * image) / sigma


def row_of(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """The table's values at t (B,), in a shape and dtype that scale `like` (B, ...)."""
    values = torch.from_numpy(table).to(like)[t]
    return values.view(-1, *(1,) * (like.ndim - 1))
