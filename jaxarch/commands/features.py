"""Pictures of what the layers of a model make of an image, and of what they attend to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxarch import catalog, state
from jaxarch.errors import DataError, UsageError
from jaxarch.files import write_whole
from jaxarch.observe import observe
from jaxarch.train import checkpoint

MOST = 8  # channels drawn of each map


def draw_features(
    name: str,
    image: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    weights: str | Path | None = None,
) -> list[str]:
    """Draw every feature map and attention map of a model, a row for each module that makes one; -> their paths.

    Args:
        image: a picture file; it is made as large as the page's input, and grey if that has one channel.
        out: the PNG to write.
        weights: a run of `jaxarch train`; random weights without it.

    Raises:
        UsageError: `out` is no .png, or the model takes no image.
        DataError: the file is no picture.
    """
    if Path(out).suffix != ".png":
        raise UsageError(f"--out {out}: the picture is written as .png")
    entry, variant = catalog.page(name), variant or catalog.default_variant(name)
    images = [k for k, v in entry.inputs.items() if v.kind == "image"]
    if not images or len(entry.inputs) > 1:
        raise UsageError(f"{name} does not take one image: it takes {', '.join(entry.inputs)}")
    shape = entry.inputs_of(variant)[images[0]].shape
    arguments = catalog.arguments(name, variant)
    channels, height, width = (arguments[s] if isinstance(s, str) else s for s in shape[1:])
    if weights is None:
        model = catalog.create_model(name, variant)
    else:
        restored = checkpoint.load(Path(weights))
        if restored.about["name"] != name:
            raise UsageError(f"{weights} holds a {restored.about['name']}, not a {name}")
        model = restored.model()
    x = read_image(image, int(channels), int(height), int(width))
    dtype = next(iter(state.split(model).params.values())).dtype
    maps = feature_maps(model, {images[0]: jnp.asarray(x, dtype)[None]})
    write_whole(Path(out), lambda temporary: _draw(x, maps, temporary))
    return list(maps)


def feature_maps(model: nnx.Module, inputs: dict[str, Any]) -> dict[str, Float[np.ndarray, "h w c"]]:
    """Module path -> its first output of the first image, of every module whose output has height and width, and
    of the gates of channels (B, C) as rows of one pixel's height."""
    found: dict[str, np.ndarray] = {}

    def keep(path: str, run: Callable[[], Any]) -> Any:
        output = run()
        gate = path.rsplit(".", 1)[-1] in ("excitation", "attention")
        if path and path not in found and hasattr(output, "ndim"):
            if output.ndim == 4:
                found[path] = np.asarray(output[0], np.float32)
            elif output.ndim == 2 and gate:
                found[path] = np.asarray(output[0], np.float32)[None, :, None]
        return output

    model.eval()
    with observe(model, keep):
        model(**inputs)
    if not found:
        raise UsageError("no module of the model makes a map with height and width")
    return found


def read_image(path: str | Path, channels: int, height: int, width: int) -> Float[np.ndarray, "h w c"]:
    """A picture file as (height, width, channels) in [0, 1], resized bilinearly with antialiasing.

    Raises:
        DataError: the file is missing or no picture.
        UsageError: neither one nor three channels are wanted.
    """
    from PIL import Image, UnidentifiedImageError

    if channels not in (1, 3):
        raise UsageError(f"the model takes {channels} channels; pictures have 1 or 3")
    try:
        with Image.open(path) as picture:
            small = picture.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BILINEAR
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise DataError(f"{path} is no picture that can be read: {e}") from None
    return (np.asarray(small, np.float32) / 255).reshape(height, width, channels)


def _draw(image: np.ndarray, maps: dict[str, np.ndarray], path: str) -> None:
    from matplotlib.figure import Figure

    # One pixel has nothing to show, unless it is all there is.
    maps = {k: v for k, v in maps.items() if v.shape[:2] != (1, 1)} or maps
    rows = len(maps) + 1
    figure = Figure(figsize=(1.1 * (MOST + 1), 1.25 * rows))
    spaces = {
        "left": 0.01,
        "right": 0.99,
        "bottom": 0.01,
        "top": 1 - 0.25 / rows,
        "wspace": 0.05,
        "hspace": 0.25,
    }
    axes = figure.subplots(rows, MOST + 1, squeeze=False, gridspec_kw=spaces)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0][0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    axes[0][0].set_title("image", fontsize=6, loc="left")
    for row, (name, found) in zip(axes[1:], maps.items(), strict=True):
        row[0].imshow(np.abs(found).mean(-1), cmap="magma", aspect="auto" if len(found) == 1 else "equal")
        row[0].set_title(f"{name} {'x'.join(map(str, found.shape))}", fontsize=6, loc="left")
        if len(found) > 1:
            for axis, channel in zip(row[1:], np.moveaxis(found, -1, 0), strict=False):
                axis.imshow(channel, cmap="viridis")
    figure.savefig(path, dpi=110, metadata={"Software": None})
