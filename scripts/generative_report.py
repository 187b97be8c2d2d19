"""Judge the generative recipes by a digits classifier, and draw what they make.

    for name in vae vq_vae generator conditional_generator diffusion_unet stylegan; do
        jaxarch train $name --out runs/$name
    done
    python scripts/generative_report.py --runs runs --out docs

Writes OUT/generative.md and OUT/generative/*.png. Every sample comes from a fixed seed.
"""

import argparse
import importlib
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

from jaxarch.sample import pictures, write_sheet
from jaxarch.train import checkpoint, fit, quality, tasks
from jaxarch.train.data import digits

COUNT, SEED = 500, 0
GUIDANCE, STEPS = 2.0, 50
CONDITIONAL = ("conditional_generator", "diffusion_unet")
SAMPLED = ("vae", "generator", *CONDITIONAL, "stylegan")
CODED = ("vae", "vq_vae")
NAMES = ("vae", "vq_vae", "generator", "conditional_generator", "diffusion_unet", "stylegan")
VERSIONS = ("jax", "flax", "optax")


@dataclass
class Judge:
    """A digits classifier, and what its last hidden layer sees in the held-out digits."""

    model: Any
    test: dict[str, np.ndarray]
    train: dict[str, np.ndarray]

    def features(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(last hidden layer, scores) of pictures (N, 8, 8, 1) in [0, 1]."""
        *hidden, last = list(self.model.network)

        @jax.jit
        def seen(x):
            for layer in hidden:
                x = layer(x)
            return x, last(x)

        found, scores = seen(jnp.asarray(images.reshape(len(images), -1), jnp.float32))
        return np.asarray(found, np.float64), np.asarray(scores)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        return float((self.features(images)[1].argmax(1) == labels).mean())

    def distance(self, images: np.ndarray) -> float:
        """The Frechet distance of the features from those of the held-out digits."""

        def moments(x):
            rows = self.features(x)[0]
            return rows.mean(0), np.cov(rows.T, bias=True)

        return quality.frechet_distance(moments(images), moments(self.test["x"]))


def judge(folder: Path) -> Judge:
    """An MLP trained by its page's recipe."""
    fit("mlp", out=folder, progress=False)
    model = checkpoint.load(folder).model()
    model.eval()
    source = digits.load(out=folder, arguments={}, seed=0)
    return Judge(model, dict(source.test), dict(source.train))


class Trained:
    """A run, and the same model before its first step."""

    def __init__(self, folder: Path):
        self.folder, self.about = folder, checkpoint.load(folder).about
        restored = checkpoint.load(folder)
        self.models: dict[bool, Any] = {True: restored.model(), False: restored._build()}
        for model in self.models.values():
            model.eval()
        shapes = self.about["sample"].items()
        self.sample = {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in shapes}
        self.log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def pictures(self, labels: np.ndarray, *, trained: bool = True) -> np.ndarray:
        """A picture for each label, 8 by 8."""
        recipe = self.about["recipe"]
        module: Any = importlib.import_module(f"{tasks.__name__}.{recipe['task']}")
        more = {"guidance": GUIDANCE, "steps": STEPS} if recipe["task"] == "denoising" else {}
        options, key = recipe["task_options"], jax.random.key(SEED)
        found = module.sample(self.models[trained], options, self.sample, key, jnp.asarray(labels), **more)
        return small(pictures(found))

    def reconstructed(self, images: np.ndarray, *, trained: bool = True) -> np.ndarray:
        """What is left of pictures (N, 8, 8, 1) behind the bottleneck, without noise."""
        model, x = self.models[trained], jnp.asarray(images, jnp.float32)
        if self.about["name"] == "vae":
            return pictures(2 * model.decode(model.encode(x.reshape(len(x), -1))[0]) - 1)
        times = self.sample["x"].shape[1] // 8
        return small(pictures(model(2 * x.repeat(times, 1).repeat(times, 2) - 1)[0]))

    def curve(self) -> tuple[list[int], list[float]]:
        rows = [r for r in self.log if "loss" in r]
        return [r["step"] for r in rows], [r["loss"] for r in rows]


def small(images: np.ndarray) -> np.ndarray:
    """Pictures made 8 by 8 by the means of squares of pixels."""
    count, height, width, channels = images.shape
    return images.reshape(count, 8, height // 8, 8, width // 8, channels).mean((2, 4))


def walk(model: Any, images: np.ndarray, columns: int = 10) -> np.ndarray:
    """Rows of pictures on the way in the latent from each picture to the next."""
    mu = model.encode(jnp.asarray(images.reshape(len(images), -1), jnp.float32))[0]
    share = jnp.linspace(0, 1, columns)[None, :, None]
    between = mu[:-1, None] * (1 - share) + mu[1:, None] * share
    return pictures(2 * model.decode(between.reshape(-1, mu.shape[1])) - 1)


def draw_curves(path: Path, runs: dict[str, Trained]) -> None:
    """The loss of every step, one panel a run."""
    figure = Figure(figsize=(8, 4), layout="constrained", dpi=70)
    for axes, (name, run) in zip(figure.subplots(2, 3).flat, runs.items(), strict=False):
        x, y = run.curve()
        width = max(len(y) // 100, 1)
        smooth = np.convolve(y, np.ones(width) / width, "valid")
        axes.plot(x[width - 1 :], smooth, linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) + ("---:",) * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def report(runs: dict[str, Trained], by: Judge, sheets: Path) -> str:
    """The page; the pictures go to `sheets`."""
    labels = np.arange(COUNT) % 10
    ten = np.array([np.flatnonzero(by.test["label"] == i)[0] for i in range(10)])
    ten = np.concatenate((ten, ten + 1))
    rows, accuracies, coded = [], [], []
    for name in (n for n in SAMPLED if n in runs):
        made, before = runs[name].pictures(labels), runs[name].pictures(labels, trained=False)
        write_sheet(sheets / f"{name}.png", made[:60])
        distances = by.distance(made), by.distance(before)
        rows.append(
            (f"`{name}`", f"{distances[0]:.2f}", f"{distances[1]:.2f}", f"{distances[1] / distances[0]:.0f}")
        )
        if name in CONDITIONAL:
            right, chance = by.accuracy(made, labels), by.accuracy(before, labels)
            accuracies.append((f"`{name}`", f"{right:.1%}", f"{chance:.1%}"))
        print(rows[-1], accuracies[-1:], flush=True)
    for name in (n for n in CODED if n in runs):
        x, y = by.test["x"], by.test["label"]
        made, before = (runs[name].reconstructed(x, trained=t) for t in (True, False))
        errors = tuple(float(((found - x) ** 2).mean()) for found in (made, before))
        coded.append((f"`{name}`", f"{errors[0]:.4f}", f"{errors[1]:.4f}", f"{by.accuracy(made, y):.1%}"))
        pairs = np.concatenate((x[ten[:10]], made[ten[:10]], x[ten[10:]], made[ten[10:]]))
        write_sheet(sheets / f"{name}_reconstructions.png", pairs)
        print(coded[-1], flush=True)
    if "vae" in runs:
        write_sheet(sheets / "vae_walk.png", walk(runs["vae"].models[True], by.test["x"][ten[:6]]))
    draw_curves(sheets / "curves.png", runs)
    floor = by.distance(by.train["x"])
    own = by.accuracy(by.test["x"], by.test["label"])
    versions = ", ".join(f"{k} {v}" for k, v in checkpoint.versions().items() if k in VERSIONS)
    notes = {
        "generator": "WGAN-GP, two time scales, averaged generator",
        "conditional_generator": "conditional WGAN-GP, averaged generator; a column for each class",
        "diffusion_unet": f"DDIM, {STEPS} steps, guidance {GUIDANCE:g}; a column for each class",
        "stylegan": "StyleGAN2's generator and discriminator, small; averaged generator",
        "vae": "decoded from the prior",
    }
    pieces = [
        "# Generative models on the digits\n",
        "The recipes of the pages, on scikit-learn's 8x8 digits, judged by an MLP trained on the same 1,437 training"
        f" digits (right for {own:.1%} of the 360 held-out ones). The Frechet distance is taken in its last hidden"
        f" layer (128 features), between {COUNT:,} samples and the held-out digits; the training digits themselves"
        f" have {floor:.2f}. Samples are drawn with seed {SEED}, by the averaged weights where a recipe keeps them.\n",
        "```\nfor name in " + " ".join(runs) + "; do jaxarch train $name --out runs/$name; done\n"
        "python scripts/generative_report.py --runs runs --out docs\n"
        "jaxarch sample runs/diffusion_unet --n 60 --seed 0 --guidance 2 --out sheet.png\n```\n",
        f"{versions}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()};"
        " November 2026, one CPU core a recipe.\n",
        "## Samples\n",
        table(("model", "Frechet distance", "untrained", "times better"), rows) + "\n",
        table(("conditional samples", "of the class asked for", "untrained"), accuracies) + "\n",
        "## Reconstructions of the held-out digits\n",
        table(("model", "mean squared error", "untrained", "recognised"), coded) + "\n",
        *(f"![{n}](generative/{n}.png)\n\n`{n}`: {notes[n]}.\n" for n in SAMPLED if n in runs),
        *(
            f"![{n}](generative/{n}_reconstructions.png)\n\n`{n}`: digits, and below them their reconstructions.\n"
            for n in CODED
            if n in runs
        ),
        *(
            ["![walk](generative/vae_walk.png)\n\n`vae`: from digit to digit along lines in the latent.\n"]
            if "vae" in runs
            else []
        ),
        "![curves](generative/curves.png)\n\nThe loss of each step (of several updates their sum), smoothed.\n",
    ]
    return "\n".join(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    runs = {n: Trained(args.runs / n) for n in NAMES if (args.runs / n / checkpoint.FOLDER).is_dir()}
    (args.out / "generative").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = report(runs, judge(Path(folder) / "mlp"), args.out / "generative")
    (args.out / "generative.md").write_text(page)
    print(args.out / "generative.md")


if __name__ == "__main__":
    main()
