"""Fine-tuning by a recipe: the weights to start from, and adapters that are trained in their place."""

import fnmatch
import inspect
import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from jaxarch.convert import fetch, hub
from jaxarch.convert.hub_names import FAMILIES, Family
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import placed
from jaxarch.errors import ConversionError, UsageError, unknown
from jaxarch.peft import Frozen, apply_lora
from jaxarch.state import Flat, flat, join

ADAPTERS = ("match", "train", *list(inspect.signature(apply_lora).parameters)[2:-1])
# Arguments that may differ from the folder's, besides dropout rates: labels, initialisation and what is returned.
FREE = ("num_labels", "problem_type", "initializer_range", "output_hidden_states", "output_attentions")


def starting_weights(
    init: str,
    model: nnx.Module,
    name: str,
    arguments: Mapping[str, Any],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> Flat:
    """The weights of a Hugging Face folder by the paths of `model`; heads that the folder lacks are left out.

    Args:
        init: the folder, see `fetch.folder_of`.
        model: an architecture of the Hub, abstract or not, without adapters.
        arguments: its arguments, which must agree with the folder's config.json.
        shardings: of the arrays to return, by path; each device reads its own parts.

    Raises:
        UsageError: as `folder_of`; `name` is not on the Hub; an argument differs from the folder's.
        ConversionError: the folder is missing or damaged, or its weights do not fit.
    """
    with hub.read_hub(fetch.folder_of(init), name) as folder:
        for key, value in folder.arguments.items():
            if key not in FREE and "drop" not in key and arguments[key] != value:
                raise UsageError(
                    f"{init} has {key} {value}, the model {arguments[key]}: set model.{key}={value}"
                )
        rows, like = layout(model), flat(nnx.state(model))
        tensors = folder.fitted({r.torch for r in rows}).tensors
        heads = FAMILIES.get(folder.config["model_type"], Family()).heads
        rows = [r for r in rows if r.torch in tensors or not re.match(heads, r.torch)]
        if not rows:
            raise ConversionError(f"{init} holds none of the weights of {name}")
        leaves = {r.path: _sharded(like[r.path], (shardings or {}).get(r.path)) for r in rows}
        return placed(rows, tensors, leaves)


def _sharded(leaf: Any, sharding: jax.sharding.Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def adapt(model: nnx.Module, adapters: Mapping[str, Any], rngs: nnx.Rngs) -> None:
    """Apply a recipe's adapters to a model, in place; without adapters the model is unchanged.

    Args:
        adapters: the arguments of `apply_lora`, and `train`: globs joined by |, of further parameters to train, such
            as those of a new head ("classifier.*"). Every other weight is frozen.

    Raises:
        UsageError: an unknown or missing setting, or a pattern without a match.
    """
    if not adapters:
        return
    for key in adapters:
        if key not in ADAPTERS:
            raise unknown("setting train.adapters.", key, ADAPTERS)
    for key in ("match", "train"):
        if not isinstance(adapters.get(key, ""), str):
            raise UsageError(f"train.adapters.{key} must be patterns joined by |, not {adapters[key]!r}")
    for key in ("rank", "alpha", "dropout"):
        if isinstance(adapters.get(key, 1), bool) or not isinstance(adapters.get(key, 1), int | float):
            raise UsageError(f"train.adapters.{key} must be a number, not {adapters[key]!r}")
    if not adapters.get("match"):
        raise UsageError("train.adapters lacks match: the paths of linear layers, such as '*.query|*.value'")
    settings = {k: v for k, v in adapters.items() if k not in ("match", "train")}
    apply_lora(model, adapters["match"], **settings, rngs=rngs)
    frozen = {
        join((*path, key)): (module, key)
        for path, module in nnx.iter_modules(model)
        for key, value in vars(module).items()
        if isinstance(value, Frozen)
    }
    for pattern in filter(None, adapters.get("train", "").split("|")):
        if not (matches := fnmatch.filter(frozen, pattern)):
            raise unknown("frozen parameter", pattern, frozen)
        for module, key in map(frozen.__getitem__, matches):
            setattr(module, key, nnx.Param(getattr(module, key)[...]))
