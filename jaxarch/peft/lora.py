"""LoRA: low-rank adapters parallel to the linear layers of any model, by their paths.

Hu et al. 2021, arXiv:2106.09685. Names and files are those of the `peft` library.
"""

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.strict import check_names
from jaxarch.errors import ConversionError, UsageError, unknown
from jaxarch.files import write_text
from jaxarch.nn import Conv1D, Dropout, Linear, Module
from jaxarch.state import join

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
LEAVES = ("lora_A.weight", "lora_B.weight")
# Settings of the peft library that change what is computed, and the supported values.
REQUIRED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
}


class Frozen(nnx.Variable):
    """A weight that is not trainable: converted and saved, but without optimizer state."""


class LoRALayer(Module):
    """x A B alpha / rank: (..., in_features) -> (..., out_features). B is initialised to zero, A as in a Linear.

    Raises:
        UsageError: a rank below 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        if rank < 1:
            raise UsageError(f"rank must be at least 1, not {rank}")
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.lora_dropout = Dropout(dropout, rngs=rngs)
        self.lora_A = Linear(in_features, rank, bias=False, rngs=rngs)
        self.lora_B = Linear(rank, out_features, bias=False, rngs=rngs)
        self.lora_B.weight[...] = jnp.zeros_like(self.lora_B.weight[...])

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        return self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scale

    def delta(self) -> Float[Array, "i o"]:
        """The update of a weight stored (in, out)."""
        return self.lora_A.weight[...] @ self.lora_B.weight[...] * self.scale


class LoRALinear(Module):
    """A Linear, or GPT-2's Conv1D, with a LoRALayer parallel to it: (..., in) -> (..., out)."""

    def __init__(
        self,
        linear: Linear | Conv1D,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        inputs, outputs = linear.weight.shape
        layer = LoRALayer(inputs, outputs, rank, alpha, dropout, rngs=rngs)
        for leaf in (layer.lora_A, layer.lora_B):
            leaf.weight[...] = leaf.weight[...].astype(linear.weight.dtype)
        self.base_layer = linear
        self.scale, self.rank, self.alpha = layer.scale, rank, alpha
        self.lora_dropout, self.lora_A, self.lora_B = layer.lora_dropout, layer.lora_A, layer.lora_B
        self.original_weight: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = self.base_layer(x)
        return y if self.merged else y + LoRALayer.__call__(self, x)  # type: ignore[arg-type]

    @property
    def merged(self) -> bool:
        """Whether the adapter is merged into the weight."""
        return self.original_weight is not None

    @property
    def weight(self) -> Array:
        """The weight with the adapter, for code that reads a layer's weight."""
        base = self.base_layer.weight[...]
        return base if self.merged else base + LoRALayer.delta(self)  # type: ignore[arg-type]

    @property
    def bias(self) -> nnx.Variable | None:
        """The base layer's."""
        return self.base_layer.bias

    def merge(self) -> None:
        """Merge the adapter into the weight; a copy of the original weight is stored."""
        if not self.merged:
            merged = self.weight
            self.original_weight = Frozen(self.base_layer.weight[...])
            self.base_layer.weight[...] = merged

    def unmerge(self) -> None:
        """Restore the original weight, bit for bit."""
        if self.merged:
            self.base_layer.weight[...] = self.original_weight[...]
            self.original_weight = nnx.data(None)


def apply_lora(
    model: nnx.Module,
    match: str,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.1,
    *,
    rngs: nnx.Rngs,
) -> list[str]:
    """Add adapters to the linear layers whose path matches, and freeze everything else, in place.

    Args:
        match: patterns of paths with `*`, one or several joined by `|`: "*.w_q|*.w_v".

    Returns:
        The paths of the layers that got an adapter.

    Raises:
        UsageError: a pattern matches no linear layer, or the model has adapters.
    """
    if adapted(model):
        raise UsageError("the model has adapters: merge and remove them, or create a new model")
    linears = {join(p): m for p, m in nnx.iter_modules(model) if isinstance(m, Linear | Conv1D)}
    paths: list[str] = []
    for pattern in match.split("|"):
        hits = fnmatch.filter(linears, pattern)
        if not hits:
            raise unknown("linear layer", pattern, linears)
        paths += [h for h in hits if h not in paths]
    freeze(model)
    for path in paths:
        put(model, path, LoRALinear(linears[path], rank, alpha, dropout, rngs=rngs))
    return paths


def remove_lora(model: nnx.Module) -> None:
    """Restore the plain layers, with the adapters merged where `merge` was called; all weights are trainable."""
    for path, layer in lora_layers(model).items():
        put(model, path, layer.base_layer)
    thaw(model)


def lora_layers(model: nnx.Module) -> dict[str, LoRALinear]:
    """The layers with adapters by path."""
    return {join(p): m for p, m in nnx.iter_modules(model) if isinstance(m, LoRALinear)}


def save_adapter(model: nnx.Module, folder: str | Path) -> None:
    """Write the adapters alone, as the `peft` library does.

    Raises:
        UsageError: the model has none.
        ConversionError: a file could not be written.
    """
    layers, folder = lora_layers(model), Path(folder)
    if not layers:
        raise UsageError("the model has no adapters: apply_lora first")
    first = next(iter(layers.values()))
    tensors = {
        f"{PREFIX}{path}.{leaf}": np.asarray(getattr(layer, leaf.split(".")[0]).weight[...]).T
        for path, layer in layers.items()
        for leaf in LEAVES
    }
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": first.lora_dropout.p,
        "bias": "none",
        "fan_in_fan_out": isinstance(first.base_layer, Conv1D),
        "target_modules": sorted(layers),
    }
    write_tensors(folder / WEIGHTS, tensors)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_text(folder / CONFIG, text)


def load_adapter(model: nnx.Module, folder: str | Path, *, rngs: nnx.Rngs) -> list[str]:
    """Read adapters that `save_adapter` or the `peft` library wrote into a model without any.

    Returns:
        The paths of the layers that got an adapter.

    Raises:
        ConversionError: a file is missing or damaged, a setting is not supported, names or shapes differ.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        raise ConversionError(f"{folder / CONFIG} is missing or not JSON") from None
    for key, values in REQUIRED.items():
        if config.get(key, values[0]) not in values:
            raise ConversionError(
                f"{folder / CONFIG}: {key} is {config[key]!r}, only {values[0]!r} is supported"
            )
    tensors = {k.removeprefix(PREFIX): v for k, v in read_tensors(folder / WEIGHTS).items()}
    paths = sorted({k.removesuffix(f".{leaf}") for k in tensors for leaf in LEAVES if k.endswith(f".{leaf}")})
    check_names([f"{p}.{leaf}" for p in paths for leaf in LEAVES], tensors)
    if not paths:
        raise ConversionError(f"{folder / WEIGHTS} holds no adapters")
    linears = {join(p): m for p, m in nnx.iter_modules(model) if isinstance(m, Linear | Conv1D)}
    for path in paths:
        if path not in linears:
            raise ConversionError(str(unknown("linear layer of the model", path, linears)))
        expected = (
            (config["r"], linears[path].weight.shape[0]),
            (linears[path].weight.shape[1], config["r"]),
        )
        for leaf, shape in zip(LEAVES, expected, strict=True):
            if tensors[f"{path}.{leaf}"].shape != shape:
                actual = tensors[f"{path}.{leaf}"].shape
                raise ConversionError(f"{path}.{leaf} has shape {actual}, the model needs {shape}")
    settings = (config["r"], float(config["lora_alpha"]), float(config.get("lora_dropout", 0.0)))
    apply_lora(model, "|".join(paths), *settings, rngs=rngs)
    for path, layer in lora_layers(model).items():
        for leaf in LEAVES:
            weight = getattr(layer, leaf.split(".")[0]).weight
            weight[...] = jnp.asarray(tensors[f"{path}.{leaf}"].T, weight.dtype)
    return paths


def adapted(model: nnx.Module) -> bool:
    """Whether the model has frozen weights, and so adapters."""
    return any(isinstance(v, Frozen) for _, m in nnx.iter_modules(model) for v in vars(m).values())


def freeze(model: nnx.Module) -> None:
    """Make every parameter a weight that is not trainable."""
    _convert(model, nnx.Param, Frozen)


def thaw(model: nnx.Module) -> None:
    """Make every frozen weight a parameter."""
    _convert(model, Frozen, nnx.Param)


def _convert(model: nnx.Module, kind: type[nnx.Variable], to: type[nnx.Variable]) -> None:
    for _, module in list(nnx.iter_modules(model)):
        for name, value in list(vars(module).items()):
            if isinstance(value, kind):
                setattr(module, name, to(value[...]))


def put(model: Any, path: str, layer: nnx.Module) -> None:
    """Set the module at a path."""
    *parents, name = path.split(".")
    for part in parents:
        model = getattr(model, part)
    setattr(model, name, layer)
