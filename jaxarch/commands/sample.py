"""`jaxarch sample`: images from a trained generative model, on one sheet."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import Progress

from jaxarch import data
from jaxarch.errors import UsageError, require
from jaxarch.files import PNG_MARK, check_replaceable, write_whole
from jaxarch.train import checkpoint, tasks


def run(args: argparse.Namespace) -> int:
    """Write the sheet and print its path.

    Raises:
        JaxarchError: as `sample` and `write_sheet`.
    """
    if Path(args.out).suffix != ".png":
        raise UsageError(f"--out {args.out}: a sheet is written as .png")
    require("matplotlib", "viz", "writing a sheet of images")
    check_replaceable(args.out, PNG_MARK)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("sampling", total=None)

        def progress(step: Array) -> None:
            bar.update(task, completed=int(step) + 1, total=args.steps or 50)

        images = sample(
            args.checkpoint,
            args.n,
            seed=args.seed,
            label=args.label,
            guidance=args.guidance,
            steps=args.steps,
            progress=progress,
        )
    write_sheet(args.out, images)
    print(args.out)
    return 0


def sample(
    path: str | Path,
    n: int,
    *,
    seed: int = 0,
    label: int | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    progress: Callable[[Array], None] | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """n images (n, H, W, C) in [0, 1] from a run of a generative recipe; the same for the same seed.

    Args:
        label: the class of all; without it the classes take turns.
        guidance: the classifier-free guidance scale of a diffusion model (1 = off).
        steps: of a diffusion model's sampler.
        progress: called with the number of each step of it.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        UsageError: the run was not generative, or an argument that its task does not take.
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, not {n}")
    restored = checkpoint.load(Path(path))
    recipe = restored.about.get("recipe", {"task": "classification", "task_options": {}})
    sampler = tasks.task(recipe["task"], **recipe["task_options"]).sample
    if sampler is None:
        raise UsageError(f"{path} holds no generative model: its task is {recipe['task']}")
    parameters = inspect.signature(sampler).parameters
    settings: dict[str, Any] = {"guidance": guidance, "steps": steps}
    for name, value in settings.items():
        if value is not None and name not in parameters:
            raise UsageError(f"--{name} has no effect on a model of the task {recipe['task']}: leave it out")
    settings |= {"progress": progress} if "progress" in parameters else {}
    classes = restored.about["classes"]
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"class {label} is out of range: it must be in [0, {classes})")
    labels = jnp.arange(n) % classes if label is None else jnp.full((n,), label)
    like = {
        k: jnp.zeros(shape, data.working_dtype(dtype))
        for k, (shape, dtype) in restored.about["sample"].items()
    }
    model = restored.model()
    model.eval()
    settings = {k: v for k, v in settings.items() if v is not None}
    return to_images(sampler(model, like, jax.random.key(seed), labels, **settings))


def to_images(rows: ArrayLike) -> Float[np.ndarray, "n h w c"]:
    """(N, H, W, C) in [0, 1] from images or square rows in [-1, 1].

    Raises:
        UsageError: the length of the rows is not a square.
    """
    x = np.clip((np.asarray(rows, np.float32) + 1) / 2, 0, 1)
    if x.ndim == 2:
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1]:
            raise UsageError(f"rows of {x.shape[1]} numbers are no square images")
        x = x.reshape(len(x), side, side, 1)
    return x


def write_sheet(
    path: str | Path, images: Float[np.ndarray, "n h w c"], *, columns: int = 10, zoom: int = 6
) -> None:
    """Images (N, H, W, 1 or 3) in [0, 1] as one PNG, `columns` in a row, each pixel `zoom` wide.

    Raises:
        UsageError: the file's name does not end in .png; matplotlib is not installed.
        ConversionError: the file could not be written.
    """
    image = require("matplotlib.image", "viz", "writing a sheet of images")
    path = Path(path)
    if path.suffix != ".png":
        raise UsageError(f"{path}: a sheet is written as .png")
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + 1), columns * (width + 1), channels), np.float32)
    for i, tile in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3)).repeat(zoom, 0).repeat(zoom, 1)
    write_whole(path, lambda temporary: image.imsave(temporary, sheet, metadata={"Software": "jaxarch"}))
