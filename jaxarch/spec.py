"""What a page under configs/ may say, and the checks of it. Standard library only."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxarch.errors import UsageError, unknown

FAMILIES = ("transformer", "sequence", "vision", "generative", "graph")
# Whose state_dict keys a model has: its own, or those of a library's public checkpoints.
NAMES = ("own", "torchvision", "huggingface", "diffusers", "pyg")
# What a page outside the package need not say.
OUTSIDE: Mapping[str, Any] = {"family": FAMILIES[0], "paper": "", "names": "own", "inputs": {}}

Built = TypeVar("Built")


class Kind(NamedTuple):
    """A kind of array: whether it is floating, and torch's channel dim, which JAX has last; 0 if both have one
    order of dims."""

    floating: bool
    channel_dim: int


KINDS: Mapping[str, Kind] = {
    "features": Kind(True, 0),  # (B, F) or (B, T, F)
    "image": Kind(True, 1),  # torch (B, C, H, W), JAX (B, H, W, C)
    "signal": Kind(True, 1),  # torch (B, C, T), JAX (B, T, C)
    "video": Kind(True, 2),  # torch (B, T, C, H, W), JAX (B, T, H, W, C)
    "noise": Kind(True, 0),
    "time": Kind(True, 0),
    "tokens": Kind(False, 0),  # ids in [0, high)
    "labels": Kind(False, 0),  # ids in [0, high), some of them -100
    "lengths": Kind(False, 0),  # in [1, high], unsorted, both bounds occur
    "edges": Kind(False, 0),  # (2, E) node ids in [0, high), each source greater than its target
    "sizes": Kind(False, 0),  # nodes of each graph of a batch, in sum high
    "mask": Kind(False, 0),  # bool, left-aligned: each row begins with all of its True
}


@dataclass(frozen=True, kw_only=True)
class Input:
    """One argument of a model's call, as the parity harness draws it.

    `shape` is torch's; a string in `shape` or `high` names a constructor argument of the variant.
    """

    kind: str
    shape: tuple[int | str, ...]
    high: int | str = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("input kind", self.kind, KINDS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a page trains its model. Every field but `updates` can be set by `--set train.FIELD=VALUE`.

    None takes the value from the model's own config object if it has a field of that name
    (`ModelConfig.learning_rate`, ...), and otherwise from `train.recipe.DEFAULTS`.

    Attributes:
        variant: the variant that is trained if none is named.
        max_grad_norm: bound of the global norm of the gradient; 0 for none.
        ema: decay of the exponential moving average of the parameters, which is evaluated; 0 for none.
        monitor: write statistics of gradients, updates and activations at every evaluation.
        accumulate: the parts a batch is computed in, one after another.
        save_every: steps between checkpoints; 0 for `eval_every`.
        patience: stop after that many evaluations without a better score; 0 for never.
        init: a folder of weights to start from, see `train.finetune.starting_weights`.
        adapters: what is trained in place of all weights, see `train.finetune.adapt`.
        options: arguments of the data set; the other options are those of the task, optimizer and schedule.
        updates: optimizer fields of single updates, for a task of several
            (`[train.updates.critic] learning_rate = 4e-4`).
    """

    task: str
    data: str
    variant: str
    steps: int = 1000
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup_steps: int | None = None
    max_grad_norm: float | None = None
    mixed_precision: bool | None = None
    label_smoothing: float | None = None
    ema: float = 0.0
    monitor: bool = False
    accumulate: int = 1
    eval_every: int = 100
    save_every: int = 0
    patience: int = 0
    seed: int = 0
    init: str = ""
    adapters: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    task_options: Mapping[str, Any] = field(default_factory=dict)
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Page:
    """One architecture: what its page says, checked.

    Attributes:
        name: the file's name; of a page outside the package, its path.
        cls: the class; on a page outside the package `package.module:Class`.
        reference: the class in torch, on a page outside the package.
        names: whose state_dict keys it has, one of NAMES.
        variants: variant -> arguments of the class.
        outputs: the kind of its outputs, one of KINDS.
        sizes: variant -> shapes of the inputs that differ from those of `inputs`.
        train: the recipe that is run if none is named; `recipes` are further ones.
        sharding: glob of parameter paths -> a mesh axis for each dim, or None.
    """

    name: str
    cls: str
    family: str
    paper: str
    names: str
    variants: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Input]
    reference: str = ""
    outputs: str = "features"
    sizes: Mapping[str, Mapping[str, tuple[int | str, ...]]] = field(default_factory=dict)
    train: Recipe | None = None
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    sharding: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    @property
    def cases(self) -> tuple[str, ...]:
        """The variants that the parity harness runs: the ones whose names begin with `tiny`."""
        return tuple(v for v in self.variants if v.startswith("tiny"))

    def recipe(self, name: str | None = None) -> Recipe:
        """The recipe of that name, or the page's first.

        Raises:
            UsageError: the page has none, or none of that name.
        """
        if name is None:
            if self.train is None and self.recipes:
                raise UsageError(f"{self.name} has no first recipe: name one, {' or '.join(self.recipes)}")
            if self.train is None:
                raise UsageError(
                    f"{self.name} has no recipe: add a [train] table to configs/{self.name}.toml"
                )
            return self.train
        if name not in self.recipes:
            raise unknown(f"recipe of {self.name}", name, self.recipes)
        return self.recipes[name]

    def inputs_of(self, variant: str) -> dict[str, Input]:
        """The inputs of a variant, with its own shapes."""
        sizes = self.sizes.get(variant, {})
        return {
            k: dataclasses.replace(v, shape=tuple(sizes[k])) if k in sizes else v
            for k, v in self.inputs.items()
        }


def build(cls: type[Built], data: Mapping[str, Any], where: str) -> Built:
    """A dataclass from a table of a page.

    Raises:
        UsageError: an unknown or missing key; `where` is named.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise unknown(f"key in {where}", key, fields)
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [n for n in required if n not in data]:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def read_page(path: Path, *, outside: bool = False) -> Page:
    """Read and check one page.

    A variant may say `extends = "other"` and then lists only what differs.

    Args:
        outside: the page is a user's own: its class has an import path, family and paper may be left out.

    Raises:
        UsageError: the file is not TOML, a key is unknown or missing, or a value is not one of those allowed.
    """
    name, where = (str(path), str(path)) if outside else (path.stem, f"configs/{path.name}")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{where} is not TOML: {e}") from None
    data = {("cls" if k == "class" else k): v for k, v in data.items()}
    if outside:
        data = {**OUTSIDE, **data}
        for key in ("cls", "reference"):
            if data.get(key, "a:b").count(":") != 1:
                word = "class" if key == "cls" else key
                raise UsageError(f"{where}: write {word} = 'package.module:Class', not {data[key]!r}")
    if data.get("family") not in FAMILIES:
        raise unknown(f"family in {where}", data.get("family"), FAMILIES)
    if data.get("names", "own") not in NAMES:
        raise unknown(f"names in {where}", data["names"], NAMES)
    data["variants"] = {v: _extended(v, data.get("variants", {}), where) for v in data.get("variants", {})}
    data["inputs"] = {k: build(Input, v, f"{where} [inputs.{k}]") for k, v in data.get("inputs", {}).items()}
    for variant, sizes in data.get("sizes", {}).items():
        if variant not in data["variants"]:
            raise unknown(f"variant in {where} [sizes]", variant, data["variants"])
        for key in sizes:
            if key not in data["inputs"]:
                raise unknown(f"input in {where} [sizes.{variant}]", key, data["inputs"])

    def recipe(table: Mapping[str, Any], key: str) -> Recipe:
        built = build(Recipe, table, f"{where} [{key}]")
        if built.variant not in data["variants"]:
            raise unknown(f"variant in {where} [{key}]", built.variant, data["variants"])
        return built

    if "train" in data:
        data["train"] = recipe(data["train"], "train")
    data["recipes"] = {k: recipe(v, f"recipes.{k}") for k, v in data.get("recipes", {}).items()}
    if data.get("outputs", "features") not in KINDS:
        raise unknown(f"outputs in {where}", data["outputs"], KINDS)
    data["sharding"] = {k: tuple(a or None for a in v) for k, v in data.get("sharding", {}).items()}
    return build(Page, {"name": name, **data}, where)


def _extended(
    variant: str, variants: Mapping[str, Any], where: str, children: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The arguments of a variant, those of the variants that it extends included."""
    chain = (*children, variant)
    if variant in children:
        raise UsageError(f"{where}: variants extend each other in a circle: {' -> '.join(chain)}")
    if variant not in variants:
        raise unknown(f"variant in {where}", variant, variants)
    arguments = dict(variants[variant])
    base = arguments.pop("extends", None)
    return arguments if base is None else {**_extended(base, variants, where, chain), **arguments}
