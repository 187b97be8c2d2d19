"""Any place that holds tensors, opened without a model and without loading one: files, shards, folders, checkpoints."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxarch.convert.checkpoint_folder import ABOUT, open_checkpoint
from jaxarch.convert.fetch import folder_of
from jaxarch.convert.files import ENTRIES, manifest_of, open_tensors
from jaxarch.convert.hub import PREFIX
from jaxarch.convert.hub_config import CONFIG
from jaxarch.convert.layout import layout
from jaxarch.convert.manifest import Manifest, read_manifest
from jaxarch.convert.shards import shards_of
from jaxarch.convert.state_dict import to_torch_tensors
from jaxarch.convert.tensors import Tensor, TensorReader, tensors_of
from jaxarch.errors import ConversionError, JaxarchError
from jaxarch.train import checkpoint

INDEX = ".index.json"


@dataclass(frozen=True)
class Place:
    """What a place holds.

    Attributes:
        kind: what it is, in words.
        path: the file that is opened, or the folder of the checkpoint.
        tensors: by their names there; none is loaded.
        metadata, notes: what the file says beside them.
        shards: file -> the names of its tensors; empty where there is one file or another form.
        manifest: the hashes that were recorded as it was written, if there are any.
        about: the description of a checkpoint of ours.
        ties: name -> the tensor that it repeats, as far as the file says it.
    """

    kind: str
    path: Path
    tensors: dict[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    manifest: Manifest | None = None
    about: Mapping[str, Any] | None = None
    ties: Mapping[str, str] = field(default_factory=dict)

    def damaged(self) -> list[str]:
        """The names of tensors whose bytes are not those that were recorded; reads everything."""
        names = []
        for name, tensor in self.tensors.items():
            try:
                if self.manifest is not None:
                    self.manifest.check(name, tensor, self.path)
            except ConversionError:
                names.append(name)
        return names

    def by_torch_names(self) -> dict[str, Tensor]:
        """The weights under torch's names and in torch's layout, where this is a checkpoint of ours."""
        if self.about is None:
            return dict(self.tensors)
        model = checkpoint.Restored(self.path, self.path, dict(self.about), self.tensors).abstract()
        arrays = {
            k.partition("/")[2]: t for k, t in self.tensors.items() if k.startswith(("params/", "rest/"))
        }
        return to_torch_tensors(layout(model), arrays)


def open_place(text: str, stack: contextlib.ExitStack) -> Place:
    """Open a place; a run is opened at its newest checkpoint.

    Args:
        text: a path, `hf:` and a folder, or `hf:ORG/NAME@REVISION`.
        stack: closes what is opened.

    Raises:
        ConversionError: there is nothing that is known, or it is damaged.
    """
    path = folder_of(text) if text.startswith(PREFIX) else Path(text)
    if (path / checkpoint.FOLDER).is_dir() and (steps := checkpoint.steps(path / checkpoint.FOLDER)):
        path = path / checkpoint.FOLDER / str(steps[-1])
    if (path / ABOUT).is_file():
        reader = stack.enter_context(open_checkpoint(path))
        about = json.loads((path / ABOUT).read_text())
        kind = f"checkpoint of {about.get('name')} {about.get('variant')}"
        if "step" in about:
            kind += f", step {about['step']}"
        return _place(kind, path, reader, manifest=read_manifest(path), about=about)
    entry = next((path / n for n in ENTRIES if (path / n).is_file()), path) if path.is_dir() else path
    reader = stack.enter_context(open_tensors(entry))
    shards = {}
    if entry.name.endswith(INDEX):
        shards = {k: tuple(sorted(v)) for k, v in sorted(shards_of(entry).items())}
    kind = f"folder, read by {type(reader).__name__}"
    if not entry.is_dir():
        kind = f"{entry.name.removesuffix(INDEX).rpartition('.')[2]} file"
    if shards:
        kind += f" in {len(shards)} shards"
    if path.is_dir() and (path / CONFIG).is_file():
        kind = f"Hugging Face folder, {kind}"
    manifest = manifest_of(path) if entry.is_file() else None
    return _place(kind, entry, reader, shards=shards, manifest=manifest)


def _place(kind: str, path: Path, reader: TensorReader, **more: Any) -> Place:
    ties = {k: v for k, v in reader.metadata.items() if k not in reader.infos and v in reader.infos}
    ties |= getattr(reader, "ties", {})
    return Place(kind, path, tensors_of(reader), reader.metadata, tuple(reader.notes), ties=ties, **more)


def same_kind_of_names(a: Place, b: Place) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of two places under names that can be compared.

    Two checkpoints of ours are compared with all of their arrays; one of them with anything else by its weights.

    Raises:
        JaxarchError: the model of a checkpoint cannot be built.
    """
    if (a.about is None) == (b.about is None):
        return dict(a.tensors), dict(b.tensors)
    try:
        return a.by_torch_names(), b.by_torch_names()
    except (KeyError, TypeError) as e:
        raise JaxarchError(f"the checkpoint does not describe its model: {e}") from None
