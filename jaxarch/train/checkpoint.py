"""Checkpoints: orbax arrays, a description that rebuilds the model, and a checksum for every file.

A checkpoint is written under a temporary name and renamed when complete. Neither orbax nor safetensors
notices a flipped byte in the data, so every file is summed when written and again before it is read.
"""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import catalog, state
from jaxarch.errors import CheckpointError
from jaxarch.state import make_rngs

ARRAYS, ABOUT, SUMS = "arrays", "about.json", "checksums.json"
FOLDER, BEST = "checkpoints", "best"

_log = logging.getLogger(__name__)


def flatten(tree: Any) -> dict[str, Any]:
    """Any pytree as path -> leaf, for example `params/layers.0.norm1.weight` of a TrainState."""
    return {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree of `like` with the leaves of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[_path(path)], like)


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def save(folder: Path, step: int, tree: Any, about: Mapping[str, Any], *, keep: int = 3) -> Path:
    """Write `folder/step`, then drop all but the `keep` newest.

    Args:
        tree: the pytree of arrays; typed random keys are allowed.
        about: JSON that says what the arrays are.

    Raises:
        CheckpointError: the disk refused; nothing of it is left and the older checkpoints are intact.
    """
    write(folder / str(step), tree, {**about, "step": step})
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
    return folder / str(step)


def write(target: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write one checkpoint folder, replacing an older one of that name when complete."""
    from orbax.checkpoint import v1 as ocp

    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    leaves = {k: _plain(v) for k, v in flatten(tree).items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(".*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        ocp.save((temporary / ARRAYS).absolute(), leaves)
        sums = {"arrays": {k: _form(v) for k, v in leaves.items()}, "files": _sums(temporary / ARRAYS)}
        (temporary / SUMS).write_text(json.dumps(sums, indent=1))
        (temporary / ABOUT).write_text(json.dumps({**about, "versions": versions()}, indent=1))
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except Exception as e:  # orbax and tensorstore raise untyped errors when a disk is full
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(e).strip().splitlines()[0][:300] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{target} could not be written: {reason}; free space or change --out") from e


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def read(path: Path, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The verified leaves of one checkpoint by path.

    Args:
        like: abstract leaves with shardings to place the arrays; numpy arrays if None.

    Raises:
        CheckpointError: something is missing, damaged, or not what `like` asks for.
    """
    from orbax.checkpoint import v1 as ocp

    stored = _verified(path)
    if like is not None:
        for key, want in like.items():
            if (found := stored.get(key)) != (wanted := _form(want)):
                raise CheckpointError(f"{path}: {key} is {found or 'missing'}, wanted is {wanted}")
        if extra := sorted(set(stored) - set(like)):
            raise CheckpointError(f"{path} holds {extra[0]}, which the model does not have")
    try:
        with jax.enable_x64(True):  # else 64-bit arrays would be narrowed in silence
            abstract = {k: _abstract(v, None if like is None else like[k]) for k, v in stored.items()}
            loaded = ocp.load((path / ARRAYS).absolute(), abstract)
    except Exception as e:  # orbax and tensorstore raise untyped errors
        raise CheckpointError(f"{path} could not be read: {str(e).strip().splitlines()[0][:200]}") from e
    if like is None:
        return {k: np.asarray(v) for k, v in loaded.items()}
    return {k: _typed(v, like[k]) for k, v in loaded.items()}


def latest_intact(folder: Path, like: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(step, leaves, about) of the newest intact checkpoint; a damaged one is logged and passed over.

    Raises:
        CheckpointError: there is none.
    """
    reasons = []
    for step in reversed(steps(folder)):
        try:
            about = _json(folder / str(step) / ABOUT)
            return step, read(folder / str(step), like), about
        except CheckpointError as e:
            _log.warning("%s; trying the checkpoint before it", e)
            reasons.append(str(e))
    raise CheckpointError(f"{folder}: no intact checkpoint" + (f" ({reasons[0]})" if reasons else ""))


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint on the host: where it is, what it says of itself, its parameters and other state by path."""

    run: Path
    path: Path
    about: dict[str, Any]
    params: dict[str, np.ndarray]
    rest: dict[str, np.ndarray]
    average: dict[str, np.ndarray]
    leaves: dict[str, np.ndarray]

    def abstract(self) -> nnx.Module:
        """The model's structure, without memory."""
        return nnx.eval_shape(self._build)

    def _build(self) -> nnx.Module:
        from jaxarch.train import finetune, tasks

        about, rngs = self.about, make_rngs(0)
        model = catalog.create_model(about["name"], about["variant"], rngs=rngs, **about["overrides"])
        if "recipe" not in about:
            return model
        task = tasks.task(about["recipe"]["task"], **about["recipe"]["task_options"])
        finetune.adapt(model, about["recipe"].get("adapters", {}), rngs)
        sample = {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in about["sample"].items()}
        return task.wrap(model, sample, about["classes"], rngs)

    def model(self) -> nnx.Module:
        """The model with its weights: their moving average, if the run kept one.

        Raises:
            CheckpointError: the checkpoint's arrays are not the model's.
        """
        model = self._build()
        want = set(state.flat(nnx.state(model, nnx.Not(nnx.RngState))))
        have = {**self.params, **self.rest, **self.average}
        if missing := sorted(want - set(have)):
            raise CheckpointError(f"{self.path} holds no {missing[0]}: it is not a {self.about['name']}")
        state.update(model, {k: jnp.asarray(have[k]) for k in want})
        return model

    def merged(self) -> "Restored":
        """The same without adapters, each merged into its weight; itself where there are none."""
        from jaxarch.peft import lora_layers, remove_lora

        if not self.about.get("recipe", {}).get("adapters"):
            return self
        model = self.model()
        for layer in lora_layers(model).values():
            layer.merge()
        remove_lora(model)
        _, params, rest = state.split(model)
        numpy = [{k: np.asarray(_plain(v)) for k, v in flat.items()} for flat in (params, rest)]
        about = {**self.about, "recipe": {**self.about["recipe"], "adapters": {}}}
        return dataclasses.replace(self, about=about, params=numpy[0], rest=numpy[1], average={}, leaves={})


def load(path: Path) -> Restored:
    """A checkpoint by the folder of its run (the newest intact one), or by its own folder.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
    """
    path = Path(path)
    if (path / ABOUT).is_file():
        return _restored(path, path.parent.parent if path.parent.name == FOLDER else path)
    folder = path / FOLDER
    if not steps(folder):
        raise CheckpointError(f"{path}: no checkpoint is there; give the folder that training wrote")
    for step in reversed(steps(folder)):
        try:
            return _restored(folder / str(step), path)
        except CheckpointError as e:
            _log.warning("%s; trying the checkpoint before it", e)
    raise CheckpointError(f"{path}: every checkpoint is damaged")


def _restored(path: Path, run: Path) -> Restored:
    about, leaves = _json(path / ABOUT), read(path)
    groups: dict[str, dict[str, np.ndarray]] = {"params": {}, "rest": {}, "average": {}}
    for key, value in leaves.items():
        for group, found in groups.items():
            if key.startswith(f"{group}/"):
                found[key.removeprefix(f"{group}/")] = value
    return Restored(run, path, about, **groups, leaves=leaves)


@functools.cache
def versions() -> dict[str, str]:
    """The versions that bitwise resume depends on."""
    return {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax", "orbax-checkpoint")}


def _plain(value: Any) -> Any:
    """A typed random key as its data; all else as it is."""
    return jax.random.key_data(value) if _is_key(value) else value


def _typed(value: Any, like: Any) -> Any:
    """Key data as a typed key on its devices; all else as it is."""
    return jax.device_put(jax.random.wrap_key_data(value), like.sharding) if _is_key(like) else value


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _form(value: Any) -> dict[str, Any]:
    plain = jax.eval_shape(jax.random.key_data, value) if _is_key(value) else value
    return {"shape": list(plain.shape), "dtype": str(plain.dtype)}


def _abstract(stored: Mapping[str, Any], like: Any) -> jax.ShapeDtypeStruct:
    """What orbax shall read: shape and dtype as stored, placed as `like` or, for the host, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if like is not None and not _is_key(like):
        sharding = like.sharding
    return jax.ShapeDtypeStruct(tuple(stored["shape"]), jnp.dtype(stored["dtype"]), sharding=sharding)


def _verified(path: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every array of a checkpoint whose files are what was written."""
    written = _json(path / SUMS)
    if set(written) != {"arrays", "files"}:
        raise CheckpointError(f"{path / SUMS} is damaged: it does not list arrays and files")
    try:
        found = _sums(path / ARRAYS)
    except OSError as e:
        raise CheckpointError(f"{path} could not be read: {e}") from None
    for name, sum_ in written["files"].items():
        if name not in found:
            raise CheckpointError(f"{path} is damaged: {ARRAYS}/{name} is missing")
        if found[name] != sum_:
            raise CheckpointError(f"{path} is damaged: {ARRAYS}/{name} has changed since it was written")
    return written["arrays"]


def _sums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file below a folder by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): _sum(p) for p in files}


def _sum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged: {e}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no table")
    return content
