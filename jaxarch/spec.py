"""What a page under configs/ must satisfy. Standard library only."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxarch.errors import UsageError, unknown

FAMILIES = ("transformer", "sequence", "vision", "generative", "graph")

# kind -> (is floating, torch's channel axis that is the last in JAX, or 0 where the axes stay)
KINDS: Mapping[str, tuple[bool, int]] = {
    "features": (True, 0),  # (B, F) or (B, T, F)
    "image": (True, 1),  # torch (B, C, H, W), JAX (B, H, W, C)
    "signal": (True, 1),  # torch (B, C, T), JAX (B, T, C)
    "video": (True, 2),  # torch (B, T, C, H, W), JAX (B, T, H, W, C)
    "noise": (True, 0),
    "time": (True, 0),
    "tokens": (False, 0),  # ids in [0, high)
    "labels": (False, 0),  # ids in [0, high), some of them -100
    "lengths": (False, 0),  # in [1, high], unsorted, both ends taken
    "edges": (False, 0),  # (2, E) node ids in [0, high), source above target
    "sizes": (False, 0),  # nodes of each graph of a batch, high in all
    "mask": (False, 0),  # bool, a prefix of True per row
}


@dataclass(frozen=True, kw_only=True)
class Input:
    """One argument of a model's call, as the harness draws it.

    `shape` is torch's; a string in `shape` or `high` names a constructor argument of the variant.
    """

    kind: str
    shape: tuple[int | str, ...]
    high: int | str = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown("input kind", self.kind, KINDS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a page trains its model. Every field can be set by `--set train.FIELD=VALUE`.

    `None` takes the value from the model's own config object if it has a field of that name
    (`ModelConfig.learning_rate`, ...), and otherwise the default in `train.loop`. `options` are those of the
    data, the other options those of the task, the optimizer, the schedule; `updates` sets optimizer fields for
    single updates of a task that has several (`[train.updates.critic] learning_rate = 4e-4`). `init` is where
    the weights start, `adapters` are what trains in their place: see `train.finetune`.
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

    `sizes` gives, by variant, the shapes of inputs that differ from those of [inputs]. `train` is the recipe
    that is run if none is named, `recipes` are further ones.
    """

    name: str
    cls: str
    family: str
    paper: str
    names: str
    variants: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Input]
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
        """The inputs of a variant, in its own sizes."""
        sizes = self.sizes.get(variant, {})
        return {
            k: dataclasses.replace(v, shape=tuple(sizes[k])) if k in sizes else v
            for k, v in self.inputs.items()
        }


def build(cls, data: Mapping[str, Any], where: str):
    """Make a dataclass from a table of a page; unknown and missing keys are errors that say where."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
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


def read_page(path: Path) -> Page:
    """Read and check one page.

    A variant may say `extends = "other"` and then lists only what differs.

    Raises:
        UsageError: the file is not TOML, or a key is unknown, missing or of the wrong kind.
    """
    name, where = path.stem, f"configs/{path.name}"
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{where} is not TOML: {e}") from None
    data = {("cls" if k == "class" else k): v for k, v in data.items()}
    if data.get("family") not in FAMILIES:
        raise unknown(f"family in {where}", data.get("family"), FAMILIES)
    data["variants"] = {v: _extended(v, data.get("variants", {}), where) for v in data.get("variants", {})}
    data["inputs"] = {k: build(Input, v, f"{where} [inputs.{k}]") for k, v in data.get("inputs", {}).items()}
    for variant, sizes in data.get("sizes", {}).items():
        if variant not in data["variants"]:
            raise unknown(f"variant in {where} [sizes]", variant, data["variants"])
        for key in sizes:
            if key not in data["inputs"]:
                raise unknown(f"input in {where} [sizes.{variant}]", key, data["inputs"])

    def recipe(table: Mapping[str, Any], key: str) -> Recipe:
        made = build(Recipe, table, f"{where} [{key}]")
        if made.variant not in data["variants"]:
            raise unknown(f"variant in {where} [{key}]", made.variant, data["variants"])
        return made

    if "train" in data:
        data["train"] = recipe(data["train"], "train")
    data["recipes"] = {k: recipe(v, f"recipes.{k}") for k, v in data.get("recipes", {}).items()}
    if data.get("outputs", "features") not in KINDS:
        raise unknown(f"outputs in {where}", data["outputs"], KINDS)
    data["sharding"] = {k: tuple(a or None for a in v) for k, v in data.get("sharding", {}).items()}
    return build(Page, {"name": name, **data}, where)


def _extended(variant: str, variants: Mapping[str, Any], where: str, seen: tuple[str, ...] = ()) -> dict:
    if variant in seen:
        raise UsageError(f"{where}: variants extend each other in a circle: {' -> '.join((*seen, variant))}")
    if variant not in variants:
        raise unknown(f"variant in {where}", variant, variants)
    own = dict(variants[variant])
    base = own.pop("extends", None)
    return own if base is None else {**_extended(base, variants, where, (*seen, variant)), **own}
