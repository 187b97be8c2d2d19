"""Evaluate the generative recipes with a digits classifier, and write sheets of their samples.

    for name in vae vq_vae generator conditional_generator diffusion_unet stylegan; do
        jaxarch train $name --out runs/$name
    done
    python scripts/generative_report.py --runs runs --out docs

Writes OUT/generative.md and OUT/generative/*.png, and fails where a number is beyond its bound. All
sampling uses one fixed seed.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from matplotlib.figure import Figure

from jaxarch.commands.sample import to_images, write_sheet
from jaxarch.data.sets import digits
from jaxarch.train import checkpoint, fit, quality, tasks

COUNT, SEED = 500, 0
GUIDANCE, STEPS = 2.0, 50
CONDITIONAL = ("conditional_generator", "diffusion_unet")
SAMPLED = ("vae", "generator", *CONDITIONAL, "stylegan")
CODED = ("vae", "vq_vae")
NAMES = ("vae", "vq_vae", "generator", "conditional_generator", "diffusion_unet", "stylegan")
VERSIONS = ("jax", "flax", "optax")
# The largest Frechet distance of samples (of the VQ-VAE: reconstructions), and the least accuracy, that pass.
BOUNDS = {
    "vae": 15.0,
    "vq_vae": 5.0,
    "generator": 8.0,
    "conditional_generator": 6.0,
    "diffusion_unet": 10.0,
    "stylegan": 20.0,
}
LEAST = 0.9
NOTES = {
    "generator": "WGAN-GP, two time scales, averaged generator",
    "conditional_generator": "conditional WGAN-GP, averaged generator; a column for each class",
    "diffusion_unet": f"DDIM, {STEPS} steps, guidance {GUIDANCE:g}; a column for each class",
    "stylegan": "StyleGAN2's generator and discriminator, small, with R1; averaged generator",
    "vae": "decoded from the prior",
}
PAGE = """# Generative models on the digits

`jaxarch parity --family generative --json parity.json` proves each model against its torch twin in float64: 13 cases,
all below 1e-13 in November 2026, where 1e-10 is the bound.

The recipes of the pages, on scikit-learn's 8x8 digits, one for each of the models below:

```
for name in {names}; do jaxarch train $name --mesh data=1 --out runs/$name; done
python scripts/generative_report.py --runs runs --out docs
```

writes this page and its images, and fails where a number is beyond its bound. A sheet of one model's samples:

```
jaxarch sample runs/vae --n 60 --out vae.png
jaxarch sample runs/generator --n 60 --seed 0 --out generator.png
jaxarch sample runs/stylegan --n 60 --out stylegan.png
jaxarch sample runs/conditional_generator --n 60 --class 3 --out threes.png
jaxarch sample runs/diffusion_unet --n 60 --class 3 --guidance 2 --steps 50 --out threes.png
```

{versions}, torch {torch}, Python {python}; November 2026. The recipes in float32 with their
seed 0, on less than one of 2 shared cores; seconds are wall-clock time, compilation included.

The judge is an MLP trained by its page's recipe on the same 1,437 training digits; it recognises {own:.1%} of the 360
held-out ones. The Frechet distance is that of its last hidden layer's 128 features, between {count:,} samples (seed
{seed}; by the averaged weights where a recipe keeps them) and the held-out digits. The training digits themselves have
{floor:.2f}, and "untrained" is the same model before its first step. The bounds are about
twice the figures or more, which are of one seed each. The VAE's `beta` and StyleGAN's penalty, rate, average
and steps were chosen by this distance (three and six runs).

{distances}

{accuracies}

Held-out digits, reconstructed:

{coded}

{pictures}
![curves](generative/curves.png)

The loss of each step (of several updates their sum), smoothed.

## How stable

- Two time scales: `updates` gives the critic twice the learning rate (Heusel et al. 2017), and `critic_steps`
  updates of it come before each of the generator.
- Penalties: WGAN-GP's between real and generated images (`penalty_at = "between"`), R1 at real ones (`"real"`), or
  the first WGAN's bound on the critic's weights (`weight_clip`).
- `feature_matching` and `real_target` (one-sided label smoothing) are options of the task `gan`, off in these recipes.
- The averaged generator (`ema`) is evaluated, sampled and, with `jaxarch convert --average`, exported.
- Collapse: each evaluation gives `spread`, the samples' variance over the data's; below 0.2 a warning says so.
- Divergence: a loss that is not finite stops the run with an error that names the step; checkpoints precede it.
- Dead codes of the VQ-VAE (`revive_below`) are replaced by vectors of the batch; `perplexity`, `usage` and
  `revived` are logged.
"""


@dataclass
class Judge:
    """A digits classifier, with the held-out and the training digits."""

    model: Any
    test: dict[str, np.ndarray]
    train: dict[str, np.ndarray]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(last hidden layer, logits) of images (N, 8, 8, 1) in [0, 1]."""
        *hidden, last = list(self.model.network)

        @jax.jit
        def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            for layer in hidden:
                x = layer(x)
            return x, last(x)

        features, logits = forward(jnp.asarray(images.reshape(len(images), -1), jnp.float32))
        return np.asarray(features, np.float64), np.asarray(logits)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        return float((self.features(images)[1].argmax(1) == labels).mean())

    def distance(self, images: np.ndarray) -> float:
        """The Frechet distance of the features from those of the held-out digits."""

        def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            features = self.features(x)[0]
            return features.mean(0), np.cov(features.T, bias=True)

        return quality.frechet_distance(moments(images), moments(self.test["x"]))


def judge(folder: Path) -> Judge:
    """An MLP trained by its page's recipe."""
    fit("mlp", out=folder, progress=False)
    model = checkpoint.load(folder).model()
    model.eval()
    source = digits.load()
    return Judge(model, dict(source.test), dict(source.train))


class Trained:
    """A run, and the same model before its first step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.about = folder, checkpoint.load(folder).about
        restored = checkpoint.load(folder)
        self.models: dict[bool, Any] = {True: restored.model(), False: checkpoint.build_model(self.about)}
        for model in self.models.values():
            model.eval()
        shapes = self.about["sample"].items()
        self.sample = {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in shapes}
        self.log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def samples(self, labels: np.ndarray, *, trained: bool = True) -> np.ndarray:
        """An image (N, 8, 8, 1) for each label."""
        recipe = self.about["recipe"]
        task: Any = tasks.task(recipe["task"], **recipe["task_options"])
        more = {"guidance": GUIDANCE, "steps": STEPS} if recipe["task"] == "denoising" else {}
        key = jax.random.key(SEED)
        samples = task.sample(self.models[trained], self.sample, key, jnp.asarray(labels), **more)
        return downscale(to_images(samples))

    def reconstructed(self, images: np.ndarray, *, trained: bool = True) -> np.ndarray:
        """Images (N, 8, 8, 1) encoded and decoded again, without noise."""
        model, x = self.models[trained], jnp.asarray(images, jnp.float32)
        if self.about["name"] == "vae":
            return to_images(2 * model.decode(model.encode(x.reshape(len(x), -1))[0]) - 1)
        return downscale(to_images(model(self.upscale(images))[0]))

    def upscale(self, images: np.ndarray) -> jax.Array:
        """Images (N, 8, 8, 1) in [0, 1] in the model's size and range."""
        times = self.sample["x"].shape[1] // 8
        return 2 * jnp.asarray(images, jnp.float32).repeat(times, 1).repeat(times, 2) - 1

    def codebook(self, images: np.ndarray) -> tuple[int, int, float]:
        """(number of codes, number of codes that the images use, their perplexity)."""
        model = self.models[True]
        count = model.quantizer.codes
        share = np.bincount(np.asarray(model(self.upscale(images))[2]).ravel(), minlength=count)
        share = share[share > 0] / share.sum()
        return count, len(share), float(np.exp(-(share * np.log(share)).sum()))

    def seconds(self) -> float:
        """Wall-clock time from the first step's compilation to the last evaluation."""
        start = min(p.name.split(".")[3] for p in (self.folder / "tensorboard").glob("events.out.tfevents.*"))
        return (self.folder / "metrics.jsonl").stat().st_mtime - int(start)

    def curve(self) -> tuple[list[int], list[float]]:
        """Steps and their losses."""
        rows = [r for r in self.log if "loss" in r]
        return [r["step"] for r in rows], [r["loss"] for r in rows]


def downscale(images: np.ndarray) -> np.ndarray:
    """Images averaged over blocks of pixels to 8 by 8."""
    count, height, width, channels = images.shape
    return images.reshape(count, 8, height // 8, 8, width // 8, channels).mean((2, 4))


def interpolate(model: Any, images: np.ndarray, columns: int = 10) -> np.ndarray:
    """Rows of images decoded along the line in latent space from each image to the next."""
    mu = model.encode(jnp.asarray(images.reshape(len(images), -1), jnp.float32))[0]
    share = jnp.linspace(0, 1, columns)[None, :, None]
    between = mu[:-1, None] * (1 - share) + mu[1:, None] * share
    return to_images(2 * model.decode(between.reshape(-1, mu.shape[1])) - 1)


def draw_curves(path: Path, runs: dict[str, Trained]) -> None:
    """The loss of every step, one panel per run."""
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=70)
    panels = list(figure.subplots(2, 3).flat)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    for axes, (name, run) in zip(panels, runs.items(), strict=False):
        x, y = run.curve()
        width = max(len(y) // 100, 1)
        smooth = np.convolve(y, np.ones(width) / width, "valid")
        axes.plot(x[width - 1 :], smooth, linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table, its numbers right-aligned."""
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def check(name: str, what: str, value: float, bound: float, failed: list[str]) -> None:
    """Print a number, and append the name to `failed` where it is beyond its bound."""
    good = value <= bound if what == "distance" else value >= bound
    print(f"{name}: {what} {value:.3f}, bound {bound:g}{'' if good else ' FAILED'}", flush=True)
    if not good:
        failed.append(name)


def report(runs: dict[str, Trained], classifier: Judge, sheets: Path) -> tuple[str, list[str]]:
    """(the page, the names beyond their bounds); the images go to `sheets`."""
    labels = np.arange(COUNT) % 10
    x, y = classifier.test["x"], classifier.test["label"]
    ten = np.array([np.flatnonzero(y == i)[:2] for i in range(10)]).T
    rows: list[tuple[str, ...]] = []
    accuracies: list[tuple[str, ...]] = []
    coded: list[tuple[str, ...]] = []
    failed: list[str] = []
    pieces: list[str] = []

    def compare(name: str, what: str, images: np.ndarray, untrained: np.ndarray) -> None:
        distances = classifier.distance(images), classifier.distance(untrained)
        check(name, "distance", distances[0], BOUNDS[name], failed)
        numbers = distances[0], BOUNDS[name], distances[1]
        cells = (f"{n:.2f}" for n in numbers)
        rows.append(
            (f"`{name}`", what, *cells, f"{runs[name].log[-1]['step']:,}", f"{runs[name].seconds():.0f}")
        )

    for name in SAMPLED:
        images, untrained = runs[name].samples(labels), runs[name].samples(labels, trained=False)
        write_sheet(sheets / f"{name}.png", images[:60])
        compare(name, "samples", images, untrained)
        if name in CONDITIONAL:
            accuracy, chance = (classifier.accuracy(z, labels) for z in (images, untrained))
            check(name, "accuracy", accuracy, LEAST, failed)
            accuracies.append((f"`{name}`", f"{accuracy:.1%}", f"{LEAST:.0%}", f"{chance:.1%}"))
        pieces.append(f"![{name}](generative/{name}.png)\n\n`{name}`: {NOTES[name]}.\n")
    for name in CODED:
        images, untrained = (runs[name].reconstructed(x, trained=t) for t in (True, False))
        errors = (f"{float(((z - x) ** 2).mean()):.4f}" for z in (images, untrained))
        coded.append((f"`{name}`", *errors, f"{classifier.accuracy(images, y):.1%}"))
        write_sheet(
            sheets / f"{name}_reconstructions.png", np.concatenate([z[i] for i in ten for z in (x, images)])
        )
        text = f"`{name}`: digits, and below them their reconstructions."
        if name == "vq_vae":
            compare(name, "reconstructions", images, untrained)
            codes, used, perplexity = runs[name].codebook(x)
            text += f" The held-out digits use {used} of its {codes} codes, with a perplexity of {perplexity:.1f}."
        pieces.append(f"![{name}](generative/{name}_reconstructions.png)\n\n{text}\n")
    write_sheet(sheets / "vae_walk.png", interpolate(runs["vae"].models[True], x[ten[0][:6]]))
    pieces.append(
        "![walk](generative/vae_walk.png)\n\n`vae`: interpolation between digits in latent space.\n"
    )
    draw_curves(sheets / "curves.png", runs)
    head = ("model", "what", "Frechet distance", "bound", "untrained", "steps", "seconds")
    text = PAGE.format(
        own=classifier.accuracy(x, y),
        floor=classifier.distance(classifier.train["x"]),
        count=COUNT,
        seed=SEED,
        names=" ".join(runs),
        versions=", ".join(f"{k} {v}" for k, v in checkpoint.versions().items() if k in VERSIONS),
        torch=torch.__version__.split("+")[0],
        python=platform.python_version(),
        distances=table(head, rows),
        accuracies=table(("conditional samples", "of the requested class", "bound", "untrained"), accuracies),
        coded=table(("model", "mean squared error", "untrained", "recognised"), coded),
        pictures="\n".join(pieces),
    )
    return text, failed


def main() -> None:
    """Write the page and its images, if all runs are finished; fail where a number is beyond its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    if missing := [n for n in NAMES if not (args.runs / n / checkpoint.FOLDER).is_dir()]:
        raise SystemExit(f"{args.runs} has no finished run of {', '.join(missing)}: the page stays as it is")
    runs = {n: Trained(args.runs / n) for n in NAMES}
    (args.out / "generative").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page, failed = report(runs, judge(Path(folder) / "mlp"), args.out / "generative")
    (args.out / "generative.md").write_text(page)
    if failed:
        raise SystemExit(f"beyond their bounds: {', '.join(failed)}")


if __name__ == "__main__":
    main()
