"""config.json of a Hugging Face folder and the arguments of an architecture: one taken apart into the other.

The fields of the architecture's config dataclass are what is read. The class says the rest that it knows of the file:
`model_type`, `attribute_map` (other names of fields) and `only` (settings of which one value is implemented).
"""

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxarch import catalog
from jaxarch.errors import ConversionError, printable, unknown

CONFIG = "config.json"
# Keys that name code, which is run by those who trust the folder; it is not carried.
CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
# Keys of the release that wrote the file.
_WRITER = ("torch_dtype", "transformers_version", "dtype")
# Arguments of a call, saved only if set.
_FLAGS = ("output_hidden_states", "output_attentions")
# A label without a name of its own.
LABEL = "LABEL_{}"
MAX_JSON, MAX_SIZE = 64 << 20, 1 << 31
# Layers that config.json may have more than the file, for an error that names the first one that is missing.
_SPARE_LAYERS = 100


def hub_models() -> dict[str, str]:
    """Hugging Face's class names of the architectures that are on the Hub, and their names here."""
    pages = (catalog.page(n) for n in catalog.list_models())
    return {p.cls: p.name for p in pages if p.names == "huggingface"}


def model_types() -> list[str]:
    """The values of `model_type` that are known."""
    return sorted({config_class(n).model_type for n in hub_models().values()})


def config_class(name: str, kind: str | None = None) -> Any:
    """The config dataclass of an architecture that is on the Hub.

    Args:
        kind: the model_type that it should have.

    Raises:
        UsageError: it is not on the Hub.
        ConversionError: it is of another kind.
    """
    if catalog.page(name).names != "huggingface":
        raise unknown("Hugging Face model", name, hub_models().values())
    cls: Any = catalog.config_class(catalog.model_class(name))
    if kind not in (None, cls.model_type):
        raise ConversionError(f"the folder holds a {kind} model, {name} is a {cls.model_type} model")
    return cls


def read_config(path: Path, model: str | None = None) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(architecture, its arguments, the whole config.json) of a folder.

    Args:
        model: an architecture to take instead of the one that config.json names.

    Raises:
        ConversionError: config.json is missing or damaged, or asks for what is not implemented.
        UsageError: `model` is not on the Hub.
    """
    file = path / CONFIG
    config = read_json(file)
    kind = config.get("model_type")
    if kind not in model_types():
        known = ", ".join(model_types())
        raise ConversionError(f"{file}: model_type {printable(repr(kind))} is not known; known: {known}")
    name = _architecture(file, config) if model is None else model
    cls = config_class(name, kind)
    aliases: Mapping[str, str] = getattr(cls, "attribute_map", {})
    config = {**config, **{v: config[k] for k, v in aliases.items() if k in config and v not in config}}
    for key, value in getattr(cls, "only", {}).items():
        if config.get(key, value) != value:
            actual = printable(repr(config[key]))
            raise ConversionError(f"{file}: {key} is {actual}, only {value!r} is computed here")
    if config.get("quantization_config") is not None:
        raise ConversionError(f"{path}: the weights are quantized; save them dequantized first")
    return name, _arguments(name, cls, config, file), config


def check_sizes(arguments: Mapping[str, Any], names: Iterable[str], count: int, where: object) -> None:
    """Compare the sizes that a config.json gives with the weights' own header, before a module is built of them.

    Args:
        names: of the tensors in the file.
        count: the numbers in all of them.

    Raises:
        ConversionError: a size that the file cannot have.
    """
    layers = len({p for n in names for p in n.split(".") if p.isdecimal()})
    for key, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if re.search(r"(^|_)layers?($|_)", key) and value > layers + _SPARE_LAYERS:
            raise ConversionError(f"{where}: {key} is {value:,}, the weights have {layers} layers")
        if value > max(count, 1 << 16):
            raise ConversionError(f"{where}: {key} is {value:,}, the weights have {count:,} numbers")


def config_text(
    name: str,
    arguments: Mapping[str, Any],
    dtype: str | None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """The config.json of an architecture.

    Args:
        arguments: every argument of the architecture.
        dtype: of the weights.
        extra: settings of another config.json to keep, such as the names of labels.

    Raises:
        UsageError: the architecture is not on the Hub.
    """
    cls = config_class(name)
    config = {k: v for k, v in (extra or {}).items() if k not in (*_WRITER, *CODE_KEYS)}
    config.update({k: v for k, v in arguments.items() if k not in _FLAGS or v})
    config.update(architectures=[catalog.page(name).cls], model_type=cls.model_type)
    count = config.pop("num_labels", None)
    if count is not None and len(config.get("id2label", ())) != count:
        labels = [LABEL.format(i) for i in range(count)]
        config.update(
            id2label={str(i): n for i, n in enumerate(labels)}, label2id={n: i for i, n in enumerate(labels)}
        )
    if dtype is not None:
        config["dtype"] = dtype
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ConversionError: the file is missing, no regular file, too large, or holds something else.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        if path.stat().st_size > MAX_JSON:
            raise ConversionError(f"{path} is larger than {MAX_JSON:,} bytes")
        content = json.loads(path.read_text())
    except OSError:
        raise ConversionError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as e:
        raise ConversionError(f"{path} is not JSON: {printable(e)}") from None
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object")
    return content


def _architecture(file: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    cls = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    known = hub_models()
    if cls not in known:
        kind = config["model_type"]
        same = [n for n in known.values() if config_class(n).model_type == kind]
        raise ConversionError(
            f"{file}: the architecture {printable(repr(cls))} is not known; known: {', '.join(known)}; "
            f"give --model {' or '.join(same)} to take the part of it that this one has"
        )
    return known[cls]


def _arguments(name: str, cls: Any, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields of a config dataclass; what config.json lacks has Hugging Face's default, which is also ours.

    Arguments of the constructor beside the dataclass are those that config.json has.
    """
    hints = typing.get_type_hints(cls)
    values = {f.name: config.get(f.name, f.default) for f in dataclasses.fields(cls)}
    if "num_labels" in values and isinstance(config.get("id2label"), dict):
        values["num_labels"] = len(config["id2label"])
    constructor = typing.get_type_hints(vars(catalog.model_class(name))["__init__"])
    for key in (catalog.parameters(name).keys() - values.keys()) & config.keys():
        values[key], hints[key] = config[key], constructor[key]
    return {k: _checked(k, v, hints[k], file) for k, v in values.items()}


def _checked(key: str, value: Any, hint: Any, file: Path) -> Any:
    """A value of config.json as a field of this type; of the sizes of an image's sides, their one size."""
    allowed = typing.get_args(hint) or (hint,)
    if isinstance(value, list) and int in allowed:
        if len(set(map(str, value))) != 1:
            raise ConversionError(f"{file}: {key} {printable(value)} is not square, as it is computed here")
        value = value[0]
    if not any(_is(value, t) for t in allowed):
        wanted = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
        raise ConversionError(f"{file}: {key} is {printable(repr(value))}, which is no {wanted} in range")
    return value


def _is(value: object, kind: type) -> bool:
    """Whether a value of JSON is of a field's type and in the range that any size or rate has."""
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value) and abs(value) < 1e9  # type: ignore[arg-type]
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_SIZE
    return isinstance(value, kind)
