"""Weights from one place to another: what `jaxarch convert` does."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxarch import catalog, state
from jaxarch.convert.files import TORCH_SUFFIXES, read_tensors, write_tensors
from jaxarch.convert.layout import layout
from jaxarch.convert.run import from_torch_run, is_torch_run, is_training, to_torch_run
from jaxarch.convert.state_dict import from_torch, to_torch
from jaxarch.errors import ConversionError, UsageError

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


def convert(source: str, target: str, *, model: str | None = None, variant: str | None = None) -> str:
    """Convert weights between weight files (safetensors, torch) and checkpoint folders (orbax); strictly.

    Args:
        source: a weight file, the folder of a run or of a checkpoint, or a folder with torch's model.safetensors
            and optimizer.pt.
        target: a weight file, or a folder that does not exist yet. A run goes into a folder with its optimizer,
            as torch's two files, and back into one that training resumes.
        model, variant: the architecture; a folder that says it itself needs neither.

    Returns:
        One line that says what was written.

    Raises:
        UsageError: the architecture is not known, or contradicts what the folder says.
        ConversionError: the weights do not fit it, the source is missing or damaged, the target exists.
        CheckpointError: the folder is no checkpoint, or is damaged.
    """
    from jaxarch.train import checkpoint

    origin, goal = Path(source), Path(target)
    overrides: dict = {}
    from_folder = origin.suffix not in SUFFIXES
    if from_folder and is_torch_run(origin):
        return from_torch_run(origin, goal, model, variant)
    if from_folder and not origin.exists():
        raise ConversionError(f"{origin}: no such file or folder; files end in {', '.join(SUFFIXES)}")
    restored = checkpoint.load(origin) if from_folder else None
    if restored is not None:
        said = restored.about
        if model not in (None, said["name"]) or variant not in (None, said["variant"]):
            raise UsageError(f"{origin} holds {said['name']} {said['variant']}: leave out --model and --variant")
        model, variant, overrides = said["name"], said["variant"], said["overrides"]
        if is_training(restored) and goal.suffix not in SUFFIXES:
            return to_torch_run(restored, goal)
    if model is None:
        raise UsageError(f"{origin} does not say what it holds: give --model NAME and --variant V")
    variant = variant or catalog.default_variant(model)
    catalog.arguments(model, variant, overrides)
    built = restored.abstract() if restored else nnx.eval_shape(lambda: catalog.create_model(model, variant))
    rows = layout(built)
    like = state.flat(nnx.state(built, nnx.Not(nnx.RngState)))
    if restored is not None:
        held = {**restored.params, **{k: v for k, v in restored.rest.items() if ".rngs." not in f".{k}"}}
        tensors = to_torch(rows, held)
    else:
        tensors = read_tensors(origin)
    # Both directions pass through the same strict check of names, shapes and kinds.
    leaves = from_torch(rows, tensors, like, keep_dtype=True)
    if goal.suffix in SUFFIXES:
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
            checkpoint.write(goal, tree, {"name": model, "variant": variant, "overrides": overrides})
    size = sum(v.nbytes for v in tensors.values())
    return f"{goal}: {len(tensors)} tensors, {size:,} bytes, {model} {variant}"
