"""What a recipe says, with settings applied and every value filled in, and the optimizers it describes."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from optax import GradientTransformation

from jaxarch import catalog, optim
from jaxarch.errors import UsageError, unknown
from jaxarch.spec import Page, Recipe
from jaxarch.train import tasks

ALIASES = {"lr": "learning_rate"}
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "mixed_precision": False,
    "label_smoothing": 0.0,
}
TABLES = (
    "adapters",
    "options",
    "task_options",
    "optimizer_options",
    "schedule_options",
)  # `--set train.options.upscale=2`
UPDATE_FIELDS = (
    "optimizer",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "optimizer_options",
    "schedule",
    "schedule_options",
)


def recipe_of(
    name: str, variant: str | None, settings: Mapping[str, str], recipe: str | None = None
) -> tuple[Recipe, str, dict[str, Any]]:
    """A recipe of the page with settings applied and every value filled in: (recipe, variant, overrides).

    It is the page's [train] table if none is named; the overrides are those of the model's arguments.
    Settings are `train.FIELD` (`train.lr` is the learning rate), `train.options.OPTION`,
    `train.task_options.OPTION`, `train.adapters.SETTING` and `model.ARGUMENT`. What neither page nor
    settings say is taken from the model's config object, then from DEFAULTS.

    Raises:
        UsageError: the page has no recipe; an unknown setting, or a value of the wrong type.
    """
    written = catalog.page(name).recipe(recipe)
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    known = catalog.arguments(name, variant or written.variant)
    values, overrides = {}, {}
    for key, text in settings.items():
        room, _, field = key.partition(".")
        field = ALIASES.get(field, field)
        if room == "train" and field in fields and field not in TABLES:
            values[field] = _parsed(key, text, fields[field].type)
        elif room == "train" and field.partition(".")[0] in TABLES:
            table, _, inner = field.partition(".")
            values[table] = {**values.get(table, getattr(written, table)), inner: _literal(text)}
        elif room == "train":
            raise unknown("setting train.", field, fields)
        elif room == "model" and field in known:
            overrides[field] = _literal(text)
        elif room == "model":
            raise unknown("setting model.", field, known)
        else:
            raise unknown("setting", key, ["train.FIELD", "model.ARGUMENT"])
    made = dataclasses.replace(written, **{"variant": variant or written.variant, **values})
    arguments = catalog.arguments(name, made.variant, overrides)
    filled = {k: arguments.get(k, default) for k, default in DEFAULTS.items() if getattr(made, k) is None}
    made = dataclasses.replace(made, **filled)
    if "warmup_steps" not in values and "steps" in values:
        # The page's warm-up is meant for the page's length; a shorter run warms up for all of it at most.
        made = dataclasses.replace(made, warmup_steps=min(made.warmup_steps or 0, made.steps))
    for field in ("steps", "batch_size", "accumulate", "eval_every"):
        if getattr(made, field) < 1:
            raise UsageError(f"train.{field} must be at least 1, not {getattr(made, field)}")
    if made.batch_size % made.accumulate:
        raise UsageError(f"train.accumulate {made.accumulate} does not divide batch_size {made.batch_size}")
    if made.adapters and made.mixed_precision:
        raise UsageError("train.mixed_precision leaves frozen weights as they are: do without it or adapters")
    if not 0 <= made.ema < 1:
        raise UsageError(f"train.ema must be in [0, 1), not {made.ema}")
    return made, made.variant, overrides


def optimizers_of(recipe: Recipe, task: tasks.Task) -> dict[str, Any]:
    """The optimizer of each update of the task.

    Raises:
        UsageError: `updates` names no update of the task, or a field that updates cannot set.
    """
    for name, fields in recipe.updates.items():
        if name not in task.updates:
            raise unknown(f"update of task {recipe.task}", name, task.updates)
        for field in fields:
            if field not in UPDATE_FIELDS:
                raise unknown(f"field of update {name}", field, UPDATE_FIELDS)
    made = {}
    for name in task.updates:
        own = dataclasses.replace(recipe, **recipe.updates.get(name, {}))
        made[name] = optim.create_optimizer(
            own.optimizer,
            learning_rate=slowed(schedule_of(own), task.updates[name].times),
            weight_decay=own.weight_decay or 0.0,
            max_grad_norm=own.max_grad_norm or 0.0,
            **own.optimizer_options,
        )
    return made


def page_optimizer(page: Page) -> GradientTransformation:
    """The optimizer of a page's first recipe, its schedule included.

    Raises:
        UsageError: the page has no recipe, or its task has several optimizers.
    """
    recipe, *_ = recipe_of(page.name, None, {})
    task = tasks.task(recipe.task, label_smoothing=recipe.label_smoothing or 0.0, **recipe.task_options)
    optimizers = optimizers_of(recipe, task)
    if len(optimizers) > 1:
        raise UsageError(
            f"{page.name} has an optimizer for each of {', '.join(optimizers)}: train.recipe.optimizers_of gives them"
        )
    return next(iter(optimizers.values()))


def schedule_of(recipe: Recipe) -> Any:
    """The learning rate of each step of a recipe whose values are filled in."""
    return optim.create_schedule(
        recipe.schedule,
        recipe.learning_rate or 0.0,
        recipe.warmup_steps or 0,
        recipe.steps,
        **recipe.schedule_options,
    )


def slowed(schedule: Any, times: int) -> Any:
    """The schedule of steps for an optimizer that moves `times` times in each of them."""
    return schedule if times == 1 else lambda count: schedule(count // times)


def _literal(text: str) -> Any:
    lowered = {"true": True, "false": False, "none": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _parsed(key: str, text: str, kind: Any) -> Any:
    """A setting's value, of the type its field has."""
    value = _literal(text)
    wanted = [t for t in (int, float, bool, str) if t.__name__ in str(kind).replace("None", "")]
    if isinstance(value, int) and not isinstance(value, bool) and float in wanted:
        value = float(value)
    if type(value) not in wanted:
        names = " or ".join(t.__name__ for t in wanted)
        raise UsageError(f"{key}={text}: the value must be {names}")
    return value
