"""`jaxarch show --features`: the feature maps and attention maps of a model for one image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxarch import catalog, state
from jaxarch.errors import DataError, UsageError, require
from jaxarch.files import PNG_MARK, check_replaceable, write_whole
from jaxarch.observe import observe
from jaxarch.train import checkpoint

MAX_CHANNELS = 8  # drawn of each map

Map = Float[np.ndarray, "h w c"]


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
        image: an image file; it is resized to the page's input, and converted to grey if that has one channel.
        out: the PNG to write.
        weights: a run of `jaxarch train`; random weights without it.

    Raises:
        UsageError: `out` does not end in .png or is somebody else's file, the model takes no image, or the extra
            viz is missing.
        DataError: the file is not a readable image.
    """
    if Path(out).suffix != ".png":
        raise UsageError(f"--out {out}: the image is written as .png")
    for package in ("PIL", "matplotlib"):
        require(package, "viz", "drawing feature maps")
    check_replaceable(out, PNG_MARK)
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


def feature_maps(model: nnx.Module, inputs: dict[str, Array]) -> dict[str, Map]:
    """Module path -> the output of its first call for the first image, of every module whose output has height
    and width; channel gates (B, C) become maps of height 1.

    Raises:
        UsageError: no module makes such a map.
    """
    maps: dict[str, Map] = {}

    def record(path: str, call: Callable[[], Any]) -> Any:
        output = call()
        is_gate = path.rsplit(".", 1)[-1] in ("excitation", "attention")
        if path and path not in maps and hasattr(output, "ndim"):
            if output.ndim == 4:
                maps[path] = np.asarray(output[0], np.float32)
            elif output.ndim == 2 and is_gate:
                maps[path] = np.asarray(output[0], np.float32)[None, :, None]
        return output

    model.eval()
    with observe(model, record):
        model(**inputs)
    if not maps:
        raise UsageError("no module of the model makes a map with height and width")
    return maps


def read_image(path: str | Path, channels: int, height: int, width: int) -> Map:
    """An image file as (height, width, channels) in [0, 1], resized bilinearly with antialiasing.

    Raises:
        DataError: the file is missing or not a readable image.
        UsageError: `channels` is neither 1 nor 3.
    """
    from PIL import Image, UnidentifiedImageError

    if channels not in (1, 3):
        raise UsageError(f"the model takes {channels} channels; image files have 1 or 3")
    try:
        with Image.open(path) as image:
            resized = image.convert("L" if channels == 1 else "RGB").resize(
                (width, height), Image.Resampling.BILINEAR
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as e:
        raise DataError(f"{path} is not a readable image: {e}") from None
    return (np.asarray(resized, np.float32) / 255).reshape(height, width, channels)


def _draw(image: Map, maps: dict[str, Map], path: str) -> None:
    from matplotlib.figure import Figure

    # Maps of one pixel show nothing; they are drawn only if there are no others.
    maps = {k: v for k, v in maps.items() if v.shape[:2] != (1, 1)} or maps
    rows = len(maps) + 1
    figure = Figure(figsize=(1.1 * (MAX_CHANNELS + 1), 1.25 * rows))
    spacing = {
        "left": 0.01,
        "right": 0.99,
        "bottom": 0.01,
        "top": 1 - 0.25 / rows,
        "wspace": 0.05,
        "hspace": 0.25,
    }
    axes = figure.subplots(rows, MAX_CHANNELS + 1, squeeze=False, gridspec_kw=spacing)
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0][0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    axes[0][0].set_title("image", fontsize=6, loc="left")
    for row, (name, values) in zip(axes[1:], maps.items(), strict=True):
        row[0].imshow(np.abs(values).mean(-1), cmap="magma", aspect="auto" if len(values) == 1 else "equal")
        row[0].set_title(f"{name} {'x'.join(map(str, values.shape))}", fontsize=6, loc="left")
        if len(values) > 1:
            for axis, channel in zip(row[1:], np.moveaxis(values, -1, 0), strict=False):
                axis.imshow(channel, cmap="viridis")
    figure.savefig(path, dpi=110, metadata={"Software": "jaxarch"})
