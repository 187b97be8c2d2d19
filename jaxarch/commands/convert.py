"""`jaxarch convert`: weights and whole runs, from any kind of place to any other.

A reader for each kind of source gives one description of it, a `Source`; a writer for each kind of target takes
that description. What a new folder becomes follows from what is written into it: see `Source.folder`.
"""

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from jaxarch import catalog, state
from jaxarch.convert.checkpoint_folder import create_checkpoint
from jaxarch.convert.files import TORCH_SUFFIXES, create_tensors, open_tensors
from jaxarch.convert.hub import PREFIX, read_hub, write_hub
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import fitted, to_torch_tensors
from jaxarch.convert.stream import copy, fingerprint, infos_of
from jaxarch.convert.tensors import Tensor, tensors_of
from jaxarch.errors import ConversionError, UsageError
from jaxarch.handover.run import WEIGHTS, from_torch_run, is_torch_run, is_training, to_torch_run
from jaxarch.train import checkpoint

SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
FILE, HUB = "weight file", "Hugging Face folder"
CHECKPOINT, TORCH_RUN, RUN = "checkpoint", "torch run", "run"

Tensors = Mapping[str, Tensor]


def run(args: argparse.Namespace) -> int:
    """Print one line that says what was written."""
    line = convert(args.source, args.target, model=args.model, variant=args.variant, average=args.average)
    print(line)
    return 0


def convert(
    source: str, target: str, *, model: str | None = None, variant: str | None = None, average: bool = False
) -> str:
    """Convert weights between files (safetensors, torch), checkpoints (orbax) and Hugging Face folders; strictly.

    Args:
        source: a weight file, the folder of a run or of a checkpoint, a folder with torch's model.safetensors
            and optimizer.pt, or `hf:` and a Hugging Face folder.
        target: a weight file, or a folder that does not exist yet, with `hf:` before it a Hugging Face folder.
            A run goes into a folder with its optimizer, as torch's two files, and back into one that training
            resumes. A Hugging Face folder holds no adapters: they are merged.
        model, variant: the architecture; a folder that names it needs neither.
        average: write the exponential moving average of a run's weights, with which it evaluates and samples,
            into a file.

    Returns:
        One line that says what was written.

    Raises:
        UsageError: the architecture is not known, or contradicts what the folder says; `average` of a source
            that has none, or into a folder.
        ConversionError: the weights do not fit it, the source is missing or damaged, the target exists.
        CheckpointError: the folder is no checkpoint, or is damaged.
    """
    is_hub = target.startswith(PREFIX)
    is_file = not is_hub and Path(target).suffix in SUFFIXES
    if average and not is_file:
        raise UsageError(f"--average writes a weight file: let {target} end in one of {', '.join(SUFFIXES)}")
    with contextlib.ExitStack() as opened:
        request = Request(source, model, variant, opened, average=average, merge=is_hub)
        content = READERS[_kind(source)](request)
        return WRITERS[HUB if is_hub else FILE if is_file else content.folder](target, content)


@dataclass(frozen=True)
class Request:
    """What to read, and what the caller says of it.

    Attributes:
        model, variant: the architecture, where the source does not name it.
        opened: closes what is read at the end.
        average: read the moving average of the weights instead of the weights.
        merge: merge adapters into the weights, for a target that cannot hold them.
    """

    source: str
    model: str | None
    variant: str | None
    opened: contextlib.ExitStack
    average: bool
    merge: bool

    @property
    def path(self) -> Path:
        """The source without its prefix."""
        return Path(self.source.removeprefix(PREFIX))

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
    """Weights and buffers, checked against the architecture.

    `tensors` are under torch's names and in torch's layout, `leaves` the same by path in JAX's, of which the
    paths in `trainable` are parameters. `omitted` are keys of the source that the architecture does not have.
    """

    tensors: Tensors
    leaves: Tensors
    trainable: set[str]
    omitted: Sequence[str] = ()


@dataclass(frozen=True)
class Source:
    """What a source holds, whichever kind it is.

    Attributes:
        model, variant, overrides: the architecture.
        weights: reads and checks the weights.
        folder: the kind of folder that it is written to.
        path: where it lies.
        restored: the checkpoint, if it is one.
        average: whether the weights are the moving average of the checkpoint's.
        config: entries of a config.json, kept for the next Hugging Face folder.
    """

    model: str
    variant: str
    overrides: dict[str, Any]
    weights: Callable[[], Weights]
    folder: str
    path: Path
    restored: checkpoint.Restored | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    average: bool = False

    def fingerprint(self, *settings: Any) -> str:
        """A name for what is written of it, with which a conversion that was killed is continued."""
        about = (self.model, self.variant, self.overrides, self.average)
        return fingerprint(self.path, about, *settings)

    def arguments(self) -> dict[str, Any]:
        """Every constructor argument of the architecture.

        Raises:
            UsageError: unknown names.
        """
        return catalog.arguments(self.model, self.variant, self.overrides)


def _kind(source: str) -> str:
    """The kind of a source, by its name and, for a folder, by the files in it."""
    if source.startswith(PREFIX):
        return HUB
    if Path(source).suffix in SUFFIXES:
        return FILE
    return TORCH_RUN if is_torch_run(Path(source)) else CHECKPOINT


def read_file(request: Request) -> Source:
    """A weight file, of the architecture that the caller names."""
    return _named_by_caller(request, request.path, CHECKPOINT)


def read_torch_run(request: Request) -> Source:
    """A folder of torch's weights and optimizer, of the architecture that the caller names."""
    return _named_by_caller(request, request.path / WEIGHTS, RUN)


def read_checkpoint(request: Request) -> Source:
    """A checkpoint of ours, which names its architecture; of a run, the newest."""
    path = request.path
    if not path.exists():
        raise ConversionError(f"{path}: no such file or folder; files end in {', '.join(SUFFIXES)}")
    restored = checkpoint.load(path)
    if request.merge:
        restored = restored.merged()
    if request.average and not restored.group("ema_params"):
        raise request.without_average()
    about = restored.about
    if request.model not in (None, about["name"]) or request.variant not in (None, about["variant"]):
        raise UsageError(f"{path} holds {about['name']} {about['variant']}: leave out --model and --variant")
    params = {**restored.group("params"), **(restored.group("ema_params") if request.average else {})}
    rest = {k: v for k, v in restored.group("rest").items() if ".rngs." not in f".{k}"}

    def weights() -> Weights:
        model = restored.abstract()
        return _checked(model, to_torch_tensors(layout(model), {**params, **rest}))

    return Source(
        about["name"],
        about["variant"],
        about["overrides"],
        weights,
        TORCH_RUN if is_training(restored) else CHECKPOINT,
        path,
        restored=restored,
        config=about.get("hub", {}),
        average=request.average,
    )


def read_hub_folder(request: Request) -> Source:
    """A Hugging Face folder, whose config.json names the architecture and its sizes."""
    if request.variant is not None:
        raise UsageError(f"{request.source} says its own sizes: leave out --variant")
    if request.average:
        raise request.without_average()
    hub = read_hub(request.path, request.model)
    variant = next(iter(catalog.page(hub.name).variants))

    def weights() -> Weights:
        model = _abstract(hub.name, variant, hub.arguments)
        folder = hub.fitted({r.torch for r in layout(model)})
        return _checked(model, folder.tensors, folder.omitted)

    return Source(hub.name, variant, hub.arguments, weights, CHECKPOINT, request.path, config=hub.config)


READERS: Mapping[str, Callable[[Request], Source]] = {
    FILE: read_file,
    CHECKPOINT: read_checkpoint,
    TORCH_RUN: read_torch_run,
    HUB: read_hub_folder,
}


def write_file(target: str, source: Source) -> str:
    """A weight file."""
    weights = source.weights()
    with create_tensors(target, infos_of(weights.tensors), fingerprint=source.fingerprint()) as writer:
        copy(weights.tensors, writer)
    return _line(target, source, weights)


def write_hub_folder(target: str, source: Source) -> str:
    """A Hugging Face folder."""
    arguments, weights = source.arguments(), source.weights()
    path = target.removeprefix(PREFIX)
    write_hub(path, source.model, arguments, {k: v.read() for k, v in weights.tensors.items()}, source.config)
    return _line(target, source, weights)


def write_checkpoint(target: str, source: Source) -> str:
    """A checkpoint of weights alone."""
    weights = source.weights()
    if Path(target).exists():
        raise ConversionError(f"{target} exists: choose a new folder")
    about = {"name": source.model, "variant": source.variant, "overrides": source.overrides}
    about |= {"hub": source.config} if source.config else {}
    leaves = {
        f"{'params' if path in weights.trainable else 'rest'}/{path}": value
        for path, value in weights.leaves.items()
    }
    text = checkpoint.describe(about)
    with create_checkpoint(
        Path(target), infos_of(leaves), text, fingerprint=source.fingerprint(text)
    ) as writer:
        copy(leaves, writer)
    return _line(target, source, weights)


def write_torch_run(target: str, source: Source) -> str:
    """Torch's weights and optimizer, of a training checkpoint."""
    assert source.restored is not None  # else read_checkpoint names another folder
    return to_torch_run(source.restored, Path(target))


def write_run(target: str, source: Source) -> str:
    """A run that training resumes, of torch's weights and optimizer."""
    return from_torch_run(source.path, Path(target), source.model, source.variant)


WRITERS: Mapping[str, Callable[[str, Source], str]] = {
    FILE: write_file,
    CHECKPOINT: write_checkpoint,
    TORCH_RUN: write_torch_run,
    RUN: write_run,
    HUB: write_hub_folder,
}


def _named_by_caller(request: Request, file: Path, folder: str) -> Source:
    """The source of a weight file of which the caller says what it holds."""
    if request.average:
        raise request.without_average()
    model, variant = request.architecture()
    catalog.arguments(model, variant)

    def weights() -> Weights:
        return _checked(
            _abstract(model, variant, {}), tensors_of(request.opened.enter_context(open_tensors(file)))
        )

    return Source(model, variant, {}, weights, folder, request.path)


def _abstract(model: str, variant: str, overrides: Mapping[str, Any]) -> nnx.Module:
    return nnx.eval_shape(lambda: catalog.create_model(model, variant, **overrides))


def _checked(model: nnx.Module, tensors: Tensors, omitted: Sequence[str] = ()) -> Weights:
    """Every direction passes through one strict check of names, shapes and kinds of dtypes."""
    rows = layout(model)
    expected = state.flat(nnx.state(model, nnx.Not(nnx.RngState)))
    leaves = fitted(rows, tensors, expected)
    return Weights(tensors, leaves, {r.path for r in rows if r.trainable}, omitted)


def _line(target: str, source: Source, weights: Weights) -> str:
    size = sum(v.nbytes for v in weights.tensors.values())
    omitted = f"; left out: {', '.join(weights.omitted)}" if weights.omitted else ""
    return (
        f"{target}: {len(weights.tensors)} tensors, {size:,} bytes, {source.model} {source.variant}{omitted}"
    )
