"""The folder is the registry: an architecture's name is the name of its files."""

import dataclasses
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxarch import reference
from jaxarch.errors import UsageError, unknown
from jaxarch.spec import FAMILIES, Page, read_page

if TYPE_CHECKING:
    from flax import nnx

PACKAGES = ("jaxarch", reference.PACKAGE)
SUFFIX = ".toml"


@functools.cache
def _folder() -> Path:
    """The pages: package data in an installed wheel, the repository's configs/ in a checkout."""
    here = Path(__file__).parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


@functools.cache
def list_models(family: str | None = None) -> tuple[str, ...]:
    """The names of the architectures, sorted; of one family if given.

    Raises:
        UsageError: the family is unknown.
    """
    if family is not None and family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    names = sorted(p.stem for p in _folder().glob("*.toml"))
    return tuple(n for n in names if family is None or page(n).family == family)


def page(name: str) -> Page:
    """The page of an architecture: of the catalog by its name, a user's own by the path of its file.

    Raises:
        UsageError: there is none of that name (near matches are given), or the page is malformed.
    """
    if not name.endswith(SUFFIX):
        return _own_page(name)
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{name}: no such page; a model of the catalog is named without {SUFFIX}")
    return read_page(path.resolve(), outside=True)


@functools.cache
def _own_page(name: str) -> Page:
    if name not in (names := sorted(p.stem for p in _folder().glob("*.toml"))):
        raise unknown("model", name, names)
    return read_page(_folder() / f"{name}.toml")


def find(name: str) -> tuple[str, str | None]:
    """(architecture, variant) of a name: an architecture's, a variant's that only one page has, or both joined,
    as in efficientnet_b0.

    Raises:
        UsageError: none of these; near matches are given.
    """
    if name in list_models():
        return name, None
    owners = [n for n in list_models() if name in page(n).variants]
    if len(owners) == 1:
        return owners[0], name
    if owners:
        raise UsageError(f"{name} is a variant of {', '.join(owners)}: name the model, and --variant {name}")
    joined = {f"{n}_{v}": (n, v) for n in list_models() for v in page(n).variants}
    if name in joined:
        return joined[name]
    raise unknown("model", name, list_models(), joined)


def model_class(name: str, package: str = "jaxarch") -> type:
    """The class of an architecture in `jaxarch` or `torchref`.

    Raises:
        UsageError: unknown name or package, or torch is not installed.
    """
    entry = page(name)
    cls = entry.cls
    if package not in PACKAGES:
        raise unknown("package", package, PACKAGES)
    if name.endswith(SUFFIX):
        return _imported(entry, cls if package == "jaxarch" else entry.reference)
    if package == reference.PACKAGE:
        return getattr(reference.load(f"models.{name}", f"the PyTorch model {name}"), cls)
    return getattr(importlib.import_module(f"jaxarch.models.{name}"), cls)


def _imported(entry: Page, place: str) -> type:
    """The class that a page outside the package names by its import path; the page's folder is searched first."""
    if not place:
        raise UsageError(f"{entry.name} has no reference in torch: add reference = 'package.module:Class'")
    module, _, name = place.partition(":")
    folder = str(Path(entry.name).parent)
    sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as e:
        raise UsageError(f"{entry.name}: {module} cannot be imported: {e}; put it beside the page") from None
    finally:
        sys.path.remove(folder)
    if not isinstance(found, type):
        raise UsageError(f"{entry.name}: {module} has no class {name!r}")
    return found


def default_variant(name: str) -> str:
    """The variant that a page trains, or its first."""
    entry = page(name)
    return entry.train.variant if entry.train else next(iter(entry.variants))


def arguments(name: str, variant: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every constructor argument of a variant by name: defaults, then the page, then overrides.

    Where the constructor takes a config dataclass, its fields are arguments, before those beside it.

    Raises:
        UsageError: unknown variant, or an argument the constructor does not have.
    """
    entry = page(name)
    if variant not in entry.variants:
        raise unknown(f"variant of {name}", variant, entry.variants)
    known = parameters(name)
    given = {**entry.variants[variant], **(overrides or {})}
    for key in given:
        if key not in known:
            raise unknown(f"argument of {entry.cls}", key, known)
    missing = [k for k, default in known.items() if default is inspect.Parameter.empty and k not in given]
    if missing:
        raise UsageError(f"{entry.cls} needs {', '.join(missing)}: set it on its page or by keyword")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return {k: given.get(k, default) for k, default in known.items()}


def create_model(
    name: str,
    variant: str | None = None,
    *,
    package: str = "jaxarch",
    rngs: "nnx.Rngs | int | None" = None,
    **overrides: Any,
) -> Any:
    """Build a model of the catalog.

    Args:
        name: snake-case name of the architecture, as `list_models()` gives it.
        variant: a variant of its page; the page's training variant, or else its first, if not given.
        package: "jaxarch" for Flax NNX, "torchref" for PyTorch.
        rngs: `nnx.Rngs` or an int seed (default 0); jaxarch only.
        overrides: constructor arguments that take precedence over the page.

    Returns:
        An instance of the architecture's class: an `nnx.Module`, or a `torch.nn.Module` of torchref.

    Raises:
        UsageError: unknown name, variant, package or argument, or torch is not installed for "torchref".
    """
    variant = variant or default_variant(name)
    values = arguments(name, variant, overrides)
    cls = model_class(name, package)
    config = config_class(cls)
    fields = {f.name for f in dataclasses.fields(config)} if config else set()  # type: ignore[arg-type]
    args = {k: v for k, v in values.items() if k not in fields}
    if config:
        args["config"] = config(**{k: v for k, v in values.items() if k not in args})
    if package != "jaxarch":
        return cls(**args)
    from flax import nnx

    from jaxarch.state import make_rngs

    return cls(**args, rngs=rngs if isinstance(rngs, nnx.Rngs) else make_rngs(rngs or 0))


def config_class(cls: type) -> type | None:
    """The frozen dataclass a constructor takes as `config`, if it takes one."""
    annotation = inspect.get_annotations(_constructor(cls), eval_str=True).get("config")
    return annotation if dataclasses.is_dataclass(annotation) else None  # type: ignore[return-value]


def parameters(name: str) -> dict[str, Any]:
    """Argument name -> default, of an architecture's constructor, with the fields of its config in place of that."""
    cls = model_class(name)
    config = config_class(cls)
    direct = inspect.signature(_constructor(cls)).parameters
    parameters = {**(inspect.signature(config).parameters if config else {}), **direct}
    return {
        k: p.default
        for k, p in parameters.items()
        if k not in ("self", "rngs", "config" if config else "self")
    }


def _constructor(cls: type) -> Any:
    """The `__init__` of a class, its own where it has one."""
    return vars(cls).get("__init__", cls.__init__)  # type: ignore[misc]


class ModelFactory:
    """Factory with `create_model`, for code that expects a class."""

    @staticmethod
    def create_model(name: str, config: Mapping[str, Any] | None = None, **overrides: Any) -> Any:
        """Build `name`; `config` holds constructor arguments, as an entry of MODEL_CONFIGS does."""
        return create_model(name, **{**(config or {}), **overrides})


class _ModelConfigs(Mapping[str, dict[str, Any]]):
    """Name -> the constructor arguments of the page's default variant; read from the pages when asked."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        return dict(page(name).variants[default_variant(name)])

    def __iter__(self) -> typing.Iterator[str]:
        return iter(list_models())

    def __len__(self) -> int:
        return len(list_models())


MODEL_CONFIGS: Mapping[str, dict[str, Any]] = _ModelConfigs()
