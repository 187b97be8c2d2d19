"""Diffusion: schedules, the forward process, and samplers that take their noise as an argument.

Ho et al. 2020, arXiv:2006.11239 (DDPM); Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine schedule); Song et al.
2021, arXiv:2010.02502 (DDIM); Salimans and Ho 2022, arXiv:2202.00512 (v-prediction); Ho and Salimans 2022,
arXiv:2207.12598 (classifier-free guidance).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxarch.errors import DataError, UsageError, unknown

Predictor = Callable[[Array, Array], Array]

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
    """A noise schedule and what the model predicts.

    Images are (B, H, W, C), or any shape that begins with the batch; times are (B,) integers in [0, steps).

    Raises:
        UsageError: an unknown schedule or prediction.
    """

    steps: int = 1000
    schedule: str = "linear"
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, SCHEDULES)
        if self.prediction not in PREDICTIONS:
            raise unknown("prediction", self.prediction, PREDICTIONS)

    @property
    def betas(self) -> np.ndarray:
        """The variances of the forward steps: (steps,) in float64."""
        return SCHEDULES[self.schedule](self.steps)

    @property
    def products(self) -> np.ndarray:
        """alpha bar: the products of 1 - beta up to each step, (steps,) in float64."""
        return np.cumprod(1 - self.betas)

    def q_sample(
        self, x: Float[Array, "b *s"], t: Int[Array, " b"], noise: Float[Array, "b *s"]
    ) -> Float[Array, "b *s"]:
        """The images x after t + 1 steps of noise: sqrt(a) x + sqrt(1 - a) noise."""
        alpha, sigma = self.scales(t, x)
        return alpha * x + sigma * noise

    def target(
        self, x: Float[Array, "b *s"], t: Int[Array, " b"], noise: Float[Array, "b *s"]
    ) -> Float[Array, "b *s"]:
        """The model's target: the noise, or v = sqrt(a) noise - sqrt(1 - a) x."""
        alpha, sigma = self.scales(t, x)
        return noise if self.prediction == "epsilon" else alpha * noise - sigma * x

    def split(
        self, x: Float[Array, "b *s"], t: Int[Array, " b"], output: Float[Array, "b *s"]
    ) -> tuple[Float[Array, "b *s"], Float[Array, "b *s"]]:
        """(image, noise) that the model's output predicts for the noisy x."""
        alpha, sigma = self.scales(t, x)
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, sigma * x + alpha * output

    def scales(self, t: Int[Array, " b"], like: Array) -> tuple[Array, Array]:
        """sqrt(a) and sqrt(1 - a) at t (B,), in a shape and dtype that scale `like` (B, ...)."""
        products = self.products
        return row_of(np.sqrt(products), t, like), row_of(np.sqrt(1 - products), t, like)


def ddpm_sample(
    diffusion: Diffusion,
    predict: Predictor,
    x: Float[Array, "b *s"],
    noise: Float[Array, "steps b *s"],
    clip: float | None = None,
    progress: Callable[[Array], None] | None = None,
) -> Float[Array, "b *s"]:
    """Images from the noise x (B, ...), by every step of the reverse process, in one scan.

    noise (steps, B, ...) is the noise of each step in order; the last is not used. The variance is that of
    the posterior. `clip` bounds the image that each step predicts. `progress` is called with the number of
    each step when it is done, from compiled code too.
    """
    betas, products = diffusion.betas, diffusion.products
    previous = np.append(1.0, products[:-1])
    image_coef = betas * np.sqrt(previous) / (1 - products)
    x_coef = (1 - previous) * np.sqrt(1 - betas) / (1 - products)
    sigma = np.sqrt(betas * (1 - previous) / (1 - products))

    def body(x: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
        number, i, step_noise = step
        t = jnp.full(x.shape[:1], i)
        image, _ = clipped(diffusion, x, t, predict(x, t), clip)
        x = row_of(image_coef, t, x) * image + row_of(x_coef, t, x) * x + row_of(sigma, t, x) * step_noise
        report(progress, number)
        return x, None

    numbers = jnp.arange(diffusion.steps)
    return jax.lax.scan(body, x, (numbers, numbers[::-1], noise))[0]


def ddim_sample(
    diffusion: Diffusion,
    predict: Predictor,
    x: Float[Array, "b *s"],
    steps: int = 50,
    eta: float = 0.0,
    noise: Float[Array, "steps b *s"] | None = None,
    clip: float | None = None,
    progress: Callable[[Array], None] | None = None,
) -> Float[Array, "b *s"]:
    """Images from the noise x (B, ...), by `steps` steps evenly spread over the schedule, in one scan.

    eta 0 is deterministic; otherwise noise (steps, B, ...) is needed. `progress`: see `ddpm_sample`.

    Raises:
        DataError: eta without noise.
        UsageError: more steps than the schedule has.
    """
    times = ddim_times(diffusion, steps)
    if eta > 0 and noise is None:
        raise DataError("eta needs the noise of every step")
    products, following = ddim_products(diffusion, times)
    sigma = eta * np.sqrt((1 - following) / (1 - products) * (1 - products / following))

    def body(x: Array, step: tuple[Array, Array, Array | None]) -> tuple[Array, None]:
        number, i, step_noise = step
        t = jnp.full(x.shape[:1], i)
        index = jnp.full_like(t, number)
        image, epsilon = clipped(diffusion, x, t, predict(x, t), clip)
        x = (
            row_of(np.sqrt(following), index, x) * image
            + row_of(np.sqrt(1 - following - sigma**2), index, x) * epsilon
        )
        if step_noise is not None:
            x = x + row_of(sigma, index, x) * step_noise
        report(progress, number)
        return x, None

    return jax.lax.scan(body, x, (jnp.arange(steps), jnp.asarray(times), noise))[0]


def guided(model: Callable[..., Array], labels: Int[Array, " b"], null: int, scale: float) -> Predictor:
    """Classifier-free guidance: n + scale (c - n), with c the model's output for the labels (B,), n for no class.

    scale 1 is the conditional model (guidance off), 0 the unconditional one.
    """

    def predict(x: Array, t: Array) -> Array:
        no_class = jnp.full_like(labels, null)
        both = model(jnp.concatenate((x, x)), jnp.concatenate((t, t)), jnp.concatenate((labels, no_class)))
        conditional, unconditional = jnp.split(both, 2)
        return unconditional + scale * (conditional - unconditional)

    return predict


def drop_labels(
    labels: Int[Array, " b"], uniform: Float[Array, " b"], rate: float, null: int
) -> Int[Array, " b"]:
    """labels (B,) with the null class where `uniform` (B,) in [0, 1) is below the rate."""
    return jnp.where(uniform < rate, jnp.full_like(labels, null), labels)


def ddim_times(diffusion: Diffusion, steps: int) -> np.ndarray:
    """The times that DDIM visits, from the last to 0.

    Raises:
        UsageError: more steps than the schedule has.
    """
    if not 0 < steps <= diffusion.steps:
        raise UsageError(f"DDIM takes 1 to {diffusion.steps} steps, not {steps}")
    return np.linspace(diffusion.steps - 1, 0, steps).round().astype(int)


def ddim_products(diffusion: Diffusion, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha bar at the times, and at the times after each; after the last it is 1."""
    products = diffusion.products[times]
    return products, np.append(products[1:], 1.0)


def clipped(
    diffusion: Diffusion, x: Array, t: Int[Array, " b"], output: Array, clip: float | None
) -> tuple[Array, Array]:
    """(image, noise) with the image clipped to [-clip, clip] and the noise that corresponds to it."""
    image, noise = diffusion.split(x, t, output)
    if clip is None:
        return image, noise
    image = jnp.clip(image, -clip, clip)
    alpha, sigma = diffusion.scales(t, x)
    return image, (x - alpha * image) / sigma


def row_of(table: np.ndarray, t: Int[Array, " b"], like: Array) -> Array:
    """The table's values at t (B,), in a shape and dtype that scale `like` (B, ...)."""
    values = jnp.asarray(table, like.dtype)[t]
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def report(progress: Callable[[Array], None] | None, number: Array) -> None:
    """Call `progress` with the number when compiled code reaches this point."""
    if progress is not None:
        jax.debug.callback(progress, number)
