"""Checkpoints: orbax arrays, a description that rebuilds the model, and a checksum for every file.

A checkpoint is written under a temporary name and renamed when complete. Neither orbax nor safetensors
notices a flipped byte in the data, so a CRC-32 is stored per file and verified before a file is read.
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

from jaxarch import catalog
from jaxarch.errors import CheckpointError
from jaxarch.peft import lora_layers, remove_lora
from jaxarch.state import flat, make_rngs, split, update
from jaxarch.train import finetune, tasks

ARRAYS, ABOUT, SUMS = "arrays", "about.json", "checksums.json"
FOLDER, BEST = "checkpoints", "best"
# Names that groups of arrays had in older checkpoints.
FORMER_GROUPS = {"average": "ema_params"}

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- writing


def flatten(tree: Any) -> dict[str, Any]:
    """Any pytree as path -> leaf, for example `params/layers.0.norm1.weight` of a TrainState."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(like: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree of `like` with the leaves of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: leaves[_path(keys)], like)


def save(folder: Path, step: int, tree: Any, about: Mapping[str, Any], *, keep: int = 3) -> Path:
    """Write `folder/step`, then remove all but the `keep` newest.

    Args:
        tree: the pytree of arrays; typed random keys are allowed.
        about: JSON that describes the arrays.

    Raises:
        CheckpointError: it could not be written; nothing of it is left, and the older checkpoints are intact.
    """
    write(folder / str(step), tree, {**about, "step": step})
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
    return folder / str(step)


def write(target: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write one checkpoint folder, replacing an older one of that name when complete.

    Raises:
        CheckpointError: it could not be written.
    """
    from orbax.checkpoint import v1 as ocp

    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    leaves = {k: _without_key_type(v) for k, v in flatten(tree).items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(".*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        ocp.save((temporary / ARRAYS).absolute(), leaves)
        sums = {"arrays": {k: _spec(v) for k, v in leaves.items()}, "files": _checksums(temporary / ARRAYS)}
        (temporary / SUMS).write_text(json.dumps(sums, indent=1))
        (temporary / ABOUT).write_text(json.dumps({**about, "versions": versions()}, indent=1))
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except Exception as e:  # orbax and tensorstore raise untyped errors when a disk is full
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(e).strip().splitlines()[0][:300] if str(e).strip() else type(e).__name__
        raise CheckpointError(f"{target} could not be written: {reason}; free space or change --out") from e


@functools.cache
def versions() -> dict[str, str]:
    """The versions that bitwise resume depends on."""
    return {p: importlib.metadata.version(p) for p in ("jax", "flax", "optax", "orbax-checkpoint")}


# ------------------------------------------------------------------------------------------------- reading


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, oldest first."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal()) if folder.is_dir() else []


def read(path: Path, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The verified leaves of one checkpoint by path.

    Args:
        like: abstract leaves by path, with the shardings of the arrays to return; numpy arrays if None.

    Raises:
        CheckpointError: something is missing, damaged, or differs from `like`.
    """
    from orbax.checkpoint import v1 as ocp

    on_disk = _verified(path)
    names = {_current_name(k): k for k in on_disk}
    stored = {k: on_disk[name] for k, name in names.items()}
    if like is not None:
        for key, leaf in like.items():
            if (actual := stored.get(key)) != (expected := _spec(leaf)):
                raise CheckpointError(f"{path}: {key} is {actual or 'missing'}, expected {expected}")
        if extra := sorted(set(stored) - set(like)):
            raise CheckpointError(f"{path} holds {extra[0]}, which the model does not have")
    try:
        with jax.enable_x64(True):  # else 64-bit arrays would be cast to 32 bits without a warning
            abstract = {names[k]: _abstract(v, None if like is None else like[k]) for k, v in stored.items()}
            loaded = ocp.load((path / ARRAYS).absolute(), abstract)
    except Exception as e:  # orbax and tensorstore raise untyped errors
        raise CheckpointError(f"{path} could not be read: {str(e).strip().splitlines()[0][:200]}") from e
    if like is None:
        return {k: np.asarray(loaded[name]) for k, name in names.items()}
    return {k: _with_key_type(loaded[name], like[k]) for k, name in names.items()}


def latest_intact(folder: Path, like: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(step, leaves, about) of the newest intact checkpoint; damaged ones are logged and skipped.

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


# ------------------------------------------------------------------------------------------------- a model


def build_model(about: Mapping[str, Any]) -> nnx.Module:
    """The model that a checkpoint describes, as it was before its first step: with adapters and the task's wrapper.

    Args:
        about: the description. A checkpoint of weights alone has no "recipe".
    """
    rngs = make_rngs(0)
    model = catalog.create_model(about["name"], about["variant"], rngs=rngs, **about["overrides"])
    if "recipe" not in about:
        return model
    recipe = about["recipe"]
    finetune.adapt(model, recipe.get("adapters", {}), rngs)
    sample = {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in about["sample"].items()}
    task = tasks.task(recipe["task"], **recipe["task_options"])
    return task.wrap(model, sample, about["classes"], rngs)


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint on the host.

    Attributes:
        run: the folder of the run, or of the checkpoint where it belongs to none.
        path: the folder of the checkpoint.
        about: its description.
        leaves: all of its arrays, by path.
    """

    run: Path
    path: Path
    about: dict[str, Any]
    leaves: dict[str, np.ndarray]

    @functools.cached_property
    def params(self) -> dict[str, np.ndarray]:
        """The parameters by path."""
        return self._group("params")

    @functools.cached_property
    def rest(self) -> dict[str, np.ndarray]:
        """The remaining state of the model by path."""
        return self._group("rest")

    @functools.cached_property
    def ema_params(self) -> dict[str, np.ndarray]:
        """The moving average of the parameters by path; empty if the run kept none."""
        return self._group("ema_params")

    def _group(self, name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.leaves.items() if k.startswith(prefix)}

    def abstract(self) -> nnx.Module:
        """The model's structure, without memory."""
        return nnx.eval_shape(lambda: build_model(self.about))

    def model(self) -> nnx.Module:
        """The model with its weights: their moving average, if the run kept one.

        Raises:
            CheckpointError: the checkpoint's arrays are not the model's.
        """
        model = build_model(self.about)
        paths = set(flat(nnx.state(model, nnx.Not(nnx.RngState))))
        values = {**self.params, **self.rest, **self.ema_params}
        if missing := sorted(paths - set(values)):
            raise CheckpointError(f"{self.path} holds no {missing[0]}: it is not a {self.about['name']}")
        update(model, {k: jnp.asarray(values[k]) for k in paths})
        return model

    def merged(self) -> "Restored":
        """The same without adapters, each merged into its weight; itself where there are none."""
        if not self.about.get("recipe", {}).get("adapters"):
            return self
        model = self.model()
        for layer in lora_layers(model).values():
            layer.merge()
        remove_lora(model)
        _, params, rest = split(model)
        leaves = {
            k: np.asarray(_without_key_type(v)) for k, v in flatten({"params": params, "rest": rest}).items()
        }
        about = {**self.about, "recipe": {**self.about["recipe"], "adapters": {}}}
        return dataclasses.replace(self, about=about, leaves=leaves)


def load(path: Path) -> Restored:
    """A checkpoint by the folder of its run (the newest intact one), or by its own folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(path)
    if (path / ABOUT).is_file():
        run = path.parent.parent if path.parent.name == FOLDER else path
        return Restored(run, path, _json(path / ABOUT), read(path))
    folder = path / FOLDER
    if not steps(folder):
        raise CheckpointError(f"{path}: no checkpoint is there; give the folder that training wrote")
    for step in reversed(steps(folder)):
        checkpoint = folder / str(step)
        try:
            return Restored(path, checkpoint, _json(checkpoint / ABOUT), read(checkpoint))
        except CheckpointError as e:
            _log.warning("%s; trying the checkpoint before it", e)
    raise CheckpointError(f"{path}: every checkpoint is damaged")


# -------------------------------------------------------------------------------------------------- shared


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _current_name(key: str) -> str:
    """The name of an array, of which an older checkpoint may have another group."""
    group, slash, path = key.partition("/")
    return FORMER_GROUPS.get(group, group) + slash + path


def _without_key_type(value: Any) -> Any:
    """The data of a typed random key; the identity for other arrays."""
    return jax.random.key_data(value) if _is_key(value) else value


def _with_key_type(value: Any, like: Any) -> Any:
    """Key data as a typed key, sharded as `like`, if that is one; else the identity."""
    return jax.device_put(jax.random.wrap_key_data(value), like.sharding) if _is_key(like) else value


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _spec(value: Any) -> dict[str, Any]:
    """Shape and dtype of an array, or of the data of a random key, as JSON."""
    value = jax.eval_shape(jax.random.key_data, value) if _is_key(value) else value
    return {"shape": list(value.shape), "dtype": str(value.dtype)}


def _abstract(stored: Mapping[str, Any], like: Any) -> jax.ShapeDtypeStruct:
    """What orbax reads: shape and dtype as stored, sharded as `like` or, for the host, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if like is not None and not _is_key(like):
        sharding = like.sharding
    return jax.ShapeDtypeStruct(tuple(stored["shape"]), jnp.dtype(stored["dtype"]), sharding=sharding)


def _verified(path: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every array of a checkpoint whose files have their checksums."""
    written = _json(path / SUMS)
    if set(written) != {"arrays", "files"}:
        raise CheckpointError(f"{path / SUMS} is damaged: it does not list arrays and files")
    try:
        actual = _checksums(path / ARRAYS)
    except OSError as e:
        raise CheckpointError(f"{path} could not be read: {e}") from None
    for name, checksum in written["files"].items():
        if name not in actual:
            raise CheckpointError(f"{path} is damaged: {ARRAYS}/{name} is missing")
        if actual[name] != checksum:
            raise CheckpointError(f"{path} is damaged: {ARRAYS}/{name} has changed since it was written")
    return written["arrays"]


def _checksums(folder: Path) -> dict[str, int]:
    """The CRC-32 of every file below a folder by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): _checksum(p) for p in files}


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


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
