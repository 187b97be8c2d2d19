"""Checkpoints: orbax arrays, a description that rebuilds the model, and a hash for every array.

A checkpoint is written under a private name, read back, and renamed when complete. Neither orbax nor safetensors
notices a flipped byte in the data, so every array is compared with the manifest as it is read.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import catalog, files
from jaxarch.convert.checkpoint_folder import ABOUT, ARRAYS, SUMS, open_checkpoint, read_json
from jaxarch.convert.manifest import Manifest, hash_of, text_hash
from jaxarch.convert.placement import place
from jaxarch.convert.shards import VerifiedReader
from jaxarch.convert.state_dict import cast
from jaxarch.convert.tensors import Tensor, TensorInfo, tensors_of
from jaxarch.errors import CheckpointError, ConversionError
from jaxarch.files import first_line
from jaxarch.peft import lora_layers, remove_lora
from jaxarch.state import flat, make_rngs, split, update
from jaxarch.train import finetune, tasks
from jaxarch.train.former import with_current_slots

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
    files.clean(folder, str.isdecimal)
    write(folder / str(step), tree, {**about, "step": step})
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / str(old), ignore_errors=True)
    return folder / str(step)


def write(target: Path, tree: Any, about: Mapping[str, Any]) -> None:
    """Write one checkpoint folder, replacing an older one of that name when complete.

    Raises:
        CheckpointError: it could not be written, or another process is writing it.
    """
    from orbax.checkpoint import v1 as ocp

    leaves = {k: _without_key_type(v) for k, v in flatten(tree).items()}
    try:
        with files.locked(target), files.replacing(target) as temporary:
            temporary.mkdir()
            ocp.save((temporary / ARRAYS).absolute(), leaves)
            text = describe(about)
            (temporary / ABOUT).write_text(text)
            hashes = {k: (_info(v), hash_of([np.asarray(v)])) for k, v in leaves.items()}
            (temporary / SUMS).write_text(Manifest(hashes, {ABOUT: text_hash(text)}).dump())
            files.sync(temporary, drop=True)
            _load(temporary, temporary)  # as the disk has it
    except Exception as e:  # orbax and tensorstore raise untyped errors when a disk is full
        remedy = "" if isinstance(e, ConversionError) else "; free space or change --out"
        raise CheckpointError(f"{target} could not be written: {first_line(e)[:300]}{remedy}") from e


def describe(about: Mapping[str, Any]) -> str:
    """The description of a checkpoint as it is stored, with the versions that wrote it."""
    return json.dumps({**about, "versions": versions()}, indent=1)


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
        like: abstract leaves by path, with the shardings of the arrays to return, of which each device reads its own
            part; numpy arrays if None.

    Raises:
        CheckpointError: something is missing, damaged, or differs from `like`.
    """
    with _as_checkpoint_error(), open_checkpoint(path) as reader:
        tensors = _current(tensors_of(reader))
        if like is None:
            return {k: v.read() for k, v in tensors.items()}
        tensors = with_current_slots(tensors, like)
        for key, leaf in like.items():
            actual = tensors[key].info if key in tensors else None
            if actual != (expected := _info(leaf)):
                raise CheckpointError(f"{path}: {key} is {_words(actual)}, expected {_words(expected)}")
        if extra := sorted(set(tensors) - set(like)):
            raise CheckpointError(f"{path} holds {extra[0]}, which the model does not have")
        return {k: _placed(v, like[k]) for k, v in tensors.items()}


def latest_intact(folder: Path, like: Mapping[str, Any]) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """(step, leaves, about) of the newest intact checkpoint; damaged ones are logged and skipped.

    Raises:
        CheckpointError: there is none.
    """
    reasons = []
    for step in reversed(steps(folder)):
        try:
            leaves = read(folder / str(step), like)
            return step, leaves, _about(folder / str(step))
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
        tensors: all of its arrays by path, each read, and compared with the manifest, when it is asked for.
    """

    run: Path
    path: Path
    about: dict[str, Any]
    tensors: Mapping[str, Tensor]

    @functools.cached_property
    def leaves(self) -> dict[str, np.ndarray]:
        """All of its arrays by path."""
        return {k: v.read() for k, v in self.tensors.items()}

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

    def group(self, name: str) -> dict[str, Tensor]:
        """A group of its arrays by path, not read yet: "params", "rest", "ema_params" or "opt_state"."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def _group(self, name: str) -> dict[str, np.ndarray]:
        return {k: v.read() for k, v in self.group(name).items()}

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
        update(model, {k: jnp.asarray(self._fitting(k, values[k])) for k in paths})
        return model

    def _fitting(self, key: str, value: np.ndarray) -> np.ndarray:
        """An array in the width that JAX has in this process."""
        fitting, problems = cast(key, value, jax.dtypes.canonicalize_dtype(value.dtype))
        if problems:
            raise CheckpointError(f"{self.path}: {problems[0]}: set JAX_ENABLE_X64=1")
        return fitting

    def merged(self) -> "Restored":
        """The same without adapters, each merged into its weight; itself where there are none."""
        if not self.about.get("recipe", {}).get("adapters"):
            return self
        model = self.model()
        for layer in lora_layers(model).values():
            layer.merge()
        remove_lora(model)
        _, params, rest = split(model)
        leaves = flatten({"params": params, "rest": rest}).items()
        tensors = {k: Tensor.of(np.asarray(_without_key_type(v))) for k, v in leaves}
        about = {**self.about, "recipe": {**self.about["recipe"], "adapters": {}}}
        return dataclasses.replace(self, about=about, tensors=tensors)


def load(path: Path, *, verify: bool = True) -> Restored:
    """A checkpoint by the folder of its run (the newest intact one), or by its own folder.

    Args:
        verify: compare all arrays with the manifest now; else each of a checkpoint that is given by its own folder when
            it is first read, which then raises a ConversionError.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(path)
    if (path / ABOUT).is_file():
        run = path.parent.parent if path.parent.name == FOLDER else path
        return _load(path, run, verify=verify)
    folder = path / FOLDER
    if not steps(folder):
        raise CheckpointError(f"{path}: no checkpoint is there; give the folder that training wrote")
    for step in reversed(steps(folder)):
        try:
            return _load(folder / str(step), path)
        except CheckpointError as e:
            _log.warning("%s; trying the checkpoint before it", e)
    raise CheckpointError(f"{path}: every checkpoint is damaged")


def _load(path: Path, run: Path, *, verify: bool = True) -> Restored:
    """A checkpoint whose arrays are all as they were written."""
    with _as_checkpoint_error():
        reader = open_checkpoint(path)
        if verify and isinstance(reader, VerifiedReader):
            reader.verify()
        return Restored(run, path, _about(path), _current(tensors_of(reader)))


# -------------------------------------------------------------------------------------------------- shared


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _current(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays by their names of today; an older checkpoint may have another group."""

    def name(key: str) -> str:
        group, slash, path = key.partition("/")
        return FORMER_GROUPS.get(group, group) + slash + path

    return {name(k): v for k, v in tensors.items()}


def _placed(tensor: Tensor, like: Any) -> jax.Array:
    """An array sharded as `like`; key data as a typed key, if that is one."""
    if not _is_key(like):
        return place(tensor, like.sharding)
    return jax.device_put(jax.random.wrap_key_data(jnp.asarray(tensor.read())), like.sharding)


def _without_key_type(value: Any) -> Any:
    """The data of a typed random key; the identity for other arrays."""
    return jax.random.key_data(value) if _is_key(value) else value


def _is_key(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _info(value: Any) -> TensorInfo:
    """dtype and shape of an array, or of the data of a random key."""
    return TensorInfo.of(jax.eval_shape(jax.random.key_data, value) if _is_key(value) else value)


def _words(info: TensorInfo | None) -> str:
    return "missing" if info is None else f"{info.numpy} {info.shape}"


def _about(path: Path) -> dict[str, Any]:
    with _as_checkpoint_error():
        return read_json(path / ABOUT)


@contextlib.contextmanager
def _as_checkpoint_error() -> Iterator[None]:
    try:
        yield
    except ConversionError as e:
        raise CheckpointError(str(e)) from None
