"""Hugging Face folders whose config.json asks for what their weights do not have."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hostile import Case, Make
from hostile.headers import NEST
from jaxarch.convert.files import write_tensors

CONFIG = {
    "architectures": ["GPT2Model"],
    "model_type": "gpt2",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "n_positions": 16,
    "vocab_size": 20,
}


def hub(folder: Path, config: Any) -> Path:
    """A folder with weights and a config.json, which may be any text."""
    target = folder / "hub"
    target.mkdir()
    write_tensors(target / "model.safetensors", {"h.0.ln_1.weight": np.ones(8, np.float32)})
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    (target / "config.json").write_bytes(data)
    return target


def special(make: Any) -> Make:
    """A folder whose config.json is something else than a file."""

    def made(folder: Path) -> Path:
        target = hub(folder, CONFIG)
        (target / "config.json").unlink()
        make(target / "config.json")
        return target

    return made


def cases() -> list[Case]:
    """The cases of config.json."""
    sizes: tuple[Any, ...] = (
        10**9,
        10**30,
        "3",
        float("nan"),
        float("inf"),
        -100,
        1.5,
        None,
        True,
        [1, 2],
        {},
        "1" * 5000,
    )
    files: dict[str, Any] = {f"n_layer {str(v)[:9]}": {**CONFIG, "n_layer": v} for v in sizes}
    files |= {f"{k} {str(v)[:9]}": {**CONFIG, k: v} for k in ("vocab_size", "n_embd") for v in sizes[:8]}
    classes: tuple[Any, ...] = (None, [], {}, "GPT2Model", [[]], [{}], ["x" * 5000], ["os.system"], [None], 3)
    for value in classes:
        files[f"architectures {str(value)[:20]}"] = {**CONFIG, "architectures": value}
    kinds: tuple[Any, ...] = (None, [], {}, 3, "x" * 5000, "../gpt2", "a\nb")
    for value in kinds:
        files[f"model_type {str(value)[:9]!r}"] = {**CONFIG, "model_type": value}
    files |= {
        f"text {t[:9]!r}": t
        for t in (b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b"[" * NEST, b'{"a":' * NEST)
    }
    files["a number of 10^5 digits"] = (
        json.dumps(CONFIG).encode().replace(b'"n_layer": 1', b'"n_layer": ' + b"9" * 10**5)
    )
    files["70 MB of spaces"] = b" " * (70 << 20) + b"{}"
    files["quantized"] = {**CONFIG, "quantization_config": {"bits": 4}}
    makers: dict[str, Make] = {k: lambda folder, v=v: hub(folder, v) for k, v in files.items()}
    makers["a pipe"] = special(os.mkfifo)
    makers["a device"] = special(lambda path: path.symlink_to("/dev/zero"))
    makers["missing"] = special(lambda path: None)
    makers["a folder"] = special(os.mkdir)
    return [Case("config.json", name, make) for name, make in makers.items()]
