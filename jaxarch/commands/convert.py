"""Weights from one place to another: what `jaxarch convert` does."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxarch import catalog, state
from jaxarch.convert.files import TORCH_SUFFIXES, read_tensors, write_tensors
from jaxarch.convert.hub import PREFIX, HubFolder, read_hub, write_hub
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.errors import ConversionError, UsageError
from jaxarch.handover.run import from_torch_run, is_torch_run, is_training, to_torch_run

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def convert(
    source: str, target: str, *, model: str | None = None, variant: str | None = None, average: bool = False
) -> str:
    """Convert weights between files (safetensors, torch), checkpoints (orbax) and hub folders; strictly.

    Args:
        source: a weight file, the folder of a run or of a checkpoint, a folder with torch's model.safetensors
            and optimizer.pt, or `hf:` and a folder of the hub.
        target: a weight file, or a folder that does not exist yet, with `hf:` before it one of the hub. A run goes
            into a folder with its optimizer, as torch's two files, and back into one that training resumes.
            A folder of the hub holds no adapters: they are merged.
        model, variant: the architecture; a folder that says it itself needs neither.
        average: take the moving average of a run's weights, which it evaluates and samples with, into a file.

    Returns:
        One line that says what was written.

    Raises:
        UsageError: the architecture is not known, or contradicts what the folder says; `average` of what
            keeps none, or into a folder.
        ConversionError: the weights do not fit it, the source is missing or damaged, the target exists.
        CheckpointError: the folder is no checkpoint, or is damaged.
    """
    from jaxarch.train import checkpoint

    origin, goal = Path(source), Path(target)
    overrides: dict = {}
    if average and goal.suffix not in SUFFIXES:
        raise UsageError(f"--average writes a weight file: let {target} end in one of {', '.join(SUFFIXES)}")
    hub: HubFolder | None = None
    if source.startswith(PREFIX):
        if variant is not None:
            raise UsageError(f"{source} says its own sizes: leave out --variant")
        hub = read_hub(source.removeprefix(PREFIX), model)
        model, variant, overrides = hub.name, next(iter(catalog.page(hub.name).variants)), hub.arguments
    from_folder = hub is None and origin.suffix not in SUFFIXES
    if from_folder and not average and is_torch_run(origin):
        return from_torch_run(origin, goal, model, variant)
    if from_folder and not origin.exists():
        raise ConversionError(f"{origin}: no such file or folder; files end in {', '.join(SUFFIXES)}")
    restored = checkpoint.load(origin) if from_folder else None
    if restored is not None and target.startswith(PREFIX):
        restored = restored.merged()
    if average and not (restored and restored.ema_params):
        raise UsageError(
            f"{origin} keeps no average of its weights: train with train.ema, or leave out --average"
        )
    if restored is not None:
        said = restored.about
        if model not in (None, said["name"]) or variant not in (None, said["variant"]):
            raise UsageError(
                f"{origin} holds {said['name']} {said['variant']}: leave out --model and --variant"
            )
        model, variant, overrides = said["name"], said["variant"], said["overrides"]
        if is_training(restored) and goal.suffix not in SUFFIXES and not target.startswith(PREFIX):
            return to_torch_run(restored, goal)
    if model is None:
        raise UsageError(f"{origin} does not say what it holds: give --model NAME and --variant V")
    variant = variant or catalog.default_variant(model)
    catalog.arguments(model, variant, overrides)
    built = (
        restored.abstract()
        if restored
        else nnx.eval_shape(lambda: catalog.create_model(model, variant, **overrides))
    )
    rows = layout(built)
    like = state.flat(nnx.state(built, nnx.Not(nnx.RngState)))
    left: list[str] = []
    if hub is not None:
        tensors, left = hub.fitted({r.torch for r in rows})
    elif restored is not None:
        held = {**restored.params, **(restored.ema_params if average else {})}
        held |= {k: v for k, v in restored.rest.items() if ".rngs." not in f".{k}"}
        tensors = to_torch(rows, held)
    else:
        tensors = read_tensors(origin)
    # Both directions pass through the same strict check of names, shapes and kinds.
    leaves = from_torch(rows, tensors, like, keep_dtype=True)
    extra = hub.config if hub is not None else restored.about.get("hub", {}) if restored is not None else {}
    if target.startswith(PREFIX):
        write_hub(
            target.removeprefix(PREFIX), model, catalog.arguments(model, variant, overrides), tensors, extra
        )
    elif goal.suffix in SUFFIXES:
        write_tensors(goal, tensors)
    else:
        if goal.exists():
            raise ConversionError(f"{goal} exists: choose a new folder")
        params = {r.path for r in rows if r.trainable}
        tree = {
            "params": {k: np.array(v) for k, v in leaves.items() if k in params},
            "rest": {k: np.array(v) for k, v in leaves.items() if k not in params},
        }
        with jax.enable_x64(True):
            about = {"name": model, "variant": variant, "overrides": overrides}
            checkpoint.write(goal, tree, {**about, "hub": extra} if extra else about)
    size = sum(v.nbytes for v in tensors.values())
    omitted = f"; left out: {', '.join(left)}" if left else ""
    return f"{target}: {len(tensors)} tensors, {size:,} bytes, {model} {variant}{omitted}"
