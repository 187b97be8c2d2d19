"""What a source holds, whichever kind of place it is: weight files, checkpoints, runs, folders of the Hub."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from jaxarch import catalog, state
from jaxarch.convert.aliases import alias_rows, without_aliases
from jaxarch.convert.carried import FOLDER as BESIDE
from jaxarch.convert.files import SUFFIXES, holds_tensors, open_tensors
from jaxarch.convert.hub import PREFIX, read_hub
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.pipeline import Changes, match, renamed
from jaxarch.convert.report import Report
from jaxarch.convert.state_dict import to_torch_tensors
from jaxarch.convert.tensors import Tensor, tensors_of
from jaxarch.errors import ConversionError, UsageError
from jaxarch.handover.run import WEIGHTS, is_torch_run, is_training
from jaxarch.train import checkpoint

FILE, HUB = "weight file", "Hugging Face folder"
CHECKPOINT, TORCH_RUN, RUN = "checkpoint", "torch run", "run"


@dataclass(frozen=True)
class Request:
    """What to read, and what the caller says of it.

    Attributes:
        path: the place.
        kind: FILE, HUB, CHECKPOINT or TORCH_RUN.
        model, variant, settings: the architecture, where the source does not name it.
        changes: what to change on the way.
        average: read the moving average of the weights instead of the weights.
        part: of a file with several sets of weights, the one to take.
        merge: merge adapters into the weights, for a target that cannot hold them.
        opened: closes what reading has opened.
    """

    path: Path
    kind: str
    model: str | None = None
    variant: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)
    average: bool = False
    part: str | None = None
    merge: bool = False
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def architecture(self) -> tuple[str, str]:
        """(model, variant) of a source that does not name them."""
        if self.model is None:
            raise UsageError(f"{self.path} does not say what it holds: give --model NAME and --variant V")
        return self.model, self.variant or catalog.default_variant(self.model)

    def without_average(self) -> UsageError:
        """The error that the source has no moving average."""
        return UsageError(
            f"{self.path} keeps no average of its weights: train with train.ema, or leave out --average"
        )


class Weights(NamedTuple):
    """Weights and buffers, checked against the architecture; none is loaded.

    Attributes:
        tensors: under torch's names and in torch's layout, or under those of the rules for the target.
        leaves: the same by path in JAX's layout, of which the paths in `trainable` are parameters.
        missing: the rows of leaves that the source lacks.
    """

    tensors: dict[str, Tensor]
    leaves: dict[str, Tensor]
    trainable: set[str]
    missing: list[Row]


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        model, variant, overrides: the architecture.
        weights: checks the weights, and says in a report what became of each.
        folder: the kind of folder that it is written to.
        path: where it lies.
        restored: the checkpoint, if it is one.
        config: entries of a config.json, kept for the next Hugging Face folder.
        metadata: of safetensors.
        beside: a folder, and its files that go along with their hashes.
    """

    model: str
    variant: str
    overrides: dict[str, Any]
    weights: Callable[[Report], Weights]
    folder: str
    path: Path
    restored: checkpoint.Restored | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Path, Mapping[str, str]] | None = None

    def arguments(self) -> dict[str, Any]:
        """Every constructor argument of the architecture.

        Raises:
            UsageError: unknown names.
        """
        return catalog.arguments(self.model, self.variant, self.overrides)

    def build(self) -> nnx.Module:
        """The model with the weights of its constructor."""
        return catalog.create_model(self.model, self.variant, **self.overrides)


def kind_of(source: str) -> str:
    """The kind of a source, by its name and, for a folder, by the files in it."""
    if source.startswith(PREFIX):
        return HUB
    path = Path(source)
    if path.suffix in SUFFIXES or source.endswith(".index.json"):
        return FILE
    if is_torch_run(path):
        return TORCH_RUN
    is_ours = (path / checkpoint.ABOUT).exists() or (path / checkpoint.FOLDER).exists()
    return FILE if not is_ours and holds_tensors(path) else CHECKPOINT


def read_source(request: Request, report: Report) -> Source:
    """A source of any kind.

    Raises:
        UsageError: the architecture is not known, or contradicts what the source says.
        ConversionError, CheckpointError: the source is missing or damaged.
    """
    if request.part is not None and request.kind != FILE:
        raise UsageError(f"--part takes one set of weights out of a file; {request.path} is a {request.kind}")
    return _READERS[request.kind](request, report)


def _read_file(request: Request, report: Report) -> Source:
    """A weight file, or a folder of shards, of the architecture that the caller names."""
    return _named_by_caller(request, request.path, CHECKPOINT, report)


def _read_torch_run(request: Request, report: Report) -> Source:
    """A folder of torch's weights and optimizer, of the architecture that the caller names."""
    return _named_by_caller(request, request.path / WEIGHTS, RUN, report)


def _read_checkpoint(request: Request, report: Report) -> Source:
    """A checkpoint of ours, which names its architecture; of a run, the newest."""
    path = request.path
    if not path.exists():
        raise ConversionError(f"{path}: no such file or folder; files end in {', '.join(SUFFIXES)}")
    restored = checkpoint.load(path, verify=False)
    about = restored.about
    if about["name"].endswith(catalog.SUFFIX) and request.model is not None:
        about["name"] = request.model  # a user's page may have moved
    if request.model not in (None, about["name"]) or request.variant not in (None, about["variant"]):
        raise UsageError(f"{path} holds {about['name']} {about['variant']}: leave out --model and --variant")
    if request.settings:
        raise UsageError(f"{path} says its own sizes: leave out --set")
    if request.changes.rename is not None:
        raise UsageError(f"the names in {path} are the model's: --rename-back gives them others")
    if request.merge:
        restored = restored.merged()
    if request.average and not restored.group("ema_params"):
        raise request.without_average()
    groups = ["params", "rest", *(["ema_params"] if request.average else [])]
    arguments = catalog.arguments(about["name"], about["variant"], about["overrides"])
    arrays = {k: v for g in groups for k, v in restored.group(g).items() if ".rngs." not in f".{k}"}
    _note_rest(restored, request, report)

    def weights(report: Report) -> Weights:
        model = restored.abstract()
        rows = layout(model)
        return _matched(
            to_torch_tensors(rows, arrays), rows, model, request, report, about["name"], arguments, {}
        )

    hub = about.get("hub", {})
    carried = about.get("carried", {})
    report.carried += [*carried]
    return Source(
        about["name"],
        about["variant"],
        about["overrides"],
        weights,
        TORCH_RUN if is_training(restored) else CHECKPOINT,
        restored.path,
        restored=restored,
        config=hub,
        metadata=about.get("metadata", {}),
        beside=(restored.path / BESIDE, carried) if carried else None,
    )


def _note_rest(restored: checkpoint.Restored, request: Request, report: Report) -> None:
    """Name what a checkpoint holds beside the weights."""
    for group, what in (("opt_state", "the optimizer's state"), ("ema_params", "the moving average")):
        if restored.group(group) and not (group == "ema_params" and request.average):
            report.left[what] = "weight files hold weights alone"
    if "step" in restored.about:
        report.notes.append(f"step {restored.about['step']} of {restored.run}")


def _read_hub_folder(request: Request, report: Report) -> Source:
    """A Hugging Face folder, whose config.json names the architecture and its sizes."""
    if request.variant is not None:
        raise UsageError(f"{request.path} says its own sizes: leave out --variant")
    if request.average:
        raise request.without_average()
    hub = request.opened.enter_context(read_hub(request.path, request.model))
    for key in request.settings:
        if key in hub.arguments:
            raise UsageError(f"{request.path} says its own {key}: leave out --set {key}")
    arguments = {**hub.arguments, **request.settings}
    variant = next(iter(catalog.page(hub.name).variants))
    report.carried += [*hub.carried.files]
    report.left |= hub.carried.left
    report.left |= {f"config.json {k}": "it names code" for k in hub.code_keys()}
    report.left |= {f"{f}, its keys that name code": "it names code" for f in hub.carried.cleaned}
    report.notes += hub.reader.notes
    metadata = {k: v for k, v in hub.reader.metadata.items() if k != "format"}

    def weights(report: Report) -> Weights:
        model = _abstract(hub.name, variant, arguments)
        return _matched(hub.tensors, layout(model), model, request, report, hub.name, arguments, metadata)

    return Source(
        hub.name,
        variant,
        arguments,
        weights,
        CHECKPOINT,
        request.path,
        config={k: v for k, v in hub.config.items() if k not in hub.code_keys()},
        metadata=metadata,
        beside=(request.path, hub.carried.files) if hub.carried.files else None,
    )


_READERS: Mapping[str, Callable[[Request, Report], Source]] = {
    FILE: _read_file,
    CHECKPOINT: _read_checkpoint,
    TORCH_RUN: _read_torch_run,
    HUB: _read_hub_folder,
}


def _named_by_caller(request: Request, file: Path, folder: str, report: Report) -> Source:
    """The source of a weight file of which the caller says what it holds."""
    if request.average:
        raise request.without_average()
    model, variant = request.architecture()
    overrides = dict(request.settings)
    arguments = catalog.arguments(model, variant, overrides)
    reader = request.opened.enter_context(open_tensors(file, request.part))
    report.notes += reader.notes
    metadata = {k: v for k, v in reader.metadata.items() if k != "format"}

    def weights(report: Report) -> Weights:
        abstract = _abstract(model, variant, overrides)
        rows = layout(abstract)
        return _matched(tensors_of(reader), rows, abstract, request, report, model, arguments, metadata)

    return Source(model, variant, overrides, weights, folder, request.path, metadata=metadata)


def _matched(
    tensors: Mapping[str, Tensor],
    rows: list[Row],
    model: nnx.Module,
    request: Request,
    report: Report,
    name: str,
    arguments: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> Weights:
    """Every direction passes through one strict check of names, shapes and kinds of dtypes."""
    aliases = alias_rows(model, rows)
    if aliases:
        kept = without_aliases(rows, aliases, tensors)
        tensors = {k: t if isinstance(t, Tensor) else Tensor.of(t) for k, t in kept.items()}
    found = match(
        tensors,
        rows,
        _leaves(model),
        request.changes,
        report,
        name=name,
        arguments=arguments,
        metadata=metadata,
    )
    trainable = {r.path for r in found.rows if r.trainable}
    written = dict(found.tensors)
    for ours, row in zip(rows, found.rows, strict=True):  # rules may have named a leaf by its own path
        if row.torch != ours.torch and row.path in found.leaves:
            del written[row.torch]
            written |= to_torch_tensors([ours], found.leaves)
    written |= to_torch_tensors(aliases, found.leaves)
    report.tied |= {a.torch: a.path for a in aliases}
    back = request.changes.rules_back(arguments)
    if back is not None:
        written = renamed(_by_names_of(back.number, rows, found.leaves, written), back, report)
    return Weights(written, found.leaves, trainable, found.missing)


def _by_names_of(
    number: Callable[[str], int],
    rows: list[Row],
    leaves: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The tensors, of which those that rules name by a leaf's own path are in JAX's layout."""
    raw = {r.torch: r.path for r in rows if r.path != r.torch and number(r.path) < number(r.torch)}
    return {raw.get(k, k): leaves[raw[k]] if k in raw else t for k, t in tensors.items()}


def _leaves(model: nnx.Module) -> dict[str, Any]:
    return state.flat(nnx.state(model, nnx.Not(nnx.RngState)))


def _abstract(model: str, variant: str, overrides: Mapping[str, Any]) -> nnx.Module:
    return nnx.eval_shape(lambda: catalog.create_model(model, variant, **overrides))
