"""A recipe with settings applied and every value filled in, and the optimizers and schedules it describes."""

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from flax import nnx
from optax import GradientTransformation

from jaxarch import catalog, optim
from jaxarch.convert.layout import layout
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
# Fields that are set entry by entry: `--set train.options.upscale=2`.
TABLES = ("adapters", "options", "task_options", "optimizer_options", "schedule_options")
UPDATE_FIELDS = (
    "optimizer",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "optimizer_options",
    "schedule",
    "schedule_options",
)
Schedule = Callable[[Any], Any]


def recipe_of(
    name: str, variant: str | None, settings: Mapping[str, str], recipe: str | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """(a recipe of the page with settings applied and every value filled in, the model's overridden arguments).

    Settings are `train.FIELD` (`train.lr` is the learning rate), `train.options.OPTION`,
    `train.task_options.OPTION`, `train.adapters.SETTING` and `model.ARGUMENT`. Values that neither page nor
    settings give are those of the model's config object, then those of DEFAULTS.

    Args:
        variant: instead of the recipe's.
        recipe: the name of one of the page's recipes; its [train] table if None.

    Raises:
        UsageError: the page has no recipe; an unknown setting, or a value of the wrong type or out of range.
    """
    page_recipe = catalog.page(name).recipe(recipe)
    variant = variant or page_recipe.variant
    values, overrides = _read_settings(settings, page_recipe, catalog.arguments(name, variant))
    filled = dataclasses.replace(page_recipe, **{"variant": variant, **values})
    arguments = catalog.arguments(name, filled.variant, overrides)
    missing = {k: arguments.get(k, default) for k, default in DEFAULTS.items() if getattr(filled, k) is None}
    filled = dataclasses.replace(filled, **missing)
    if "warmup_steps" not in values and "steps" in values:
        # The page's warm-up is meant for the page's steps: fewer steps warm up for all of them at most.
        filled = dataclasses.replace(filled, warmup_steps=min(filled.warmup_steps or 0, filled.steps))
    _check(filled)
    return filled, overrides


def optimizers_of(
    recipe: Recipe, task: tasks.Task, model: nnx.Module | None = None
) -> dict[str, GradientTransformation]:
    """The optimizer of each update of the task.

    Args:
        model: its structure, for optimizers that look at the order of a weight's axes (Muon, Adafactor); without it
            matrices are taken as those of `nn.Linear`.

    Raises:
        UsageError: `updates` names no update of the task, or a field that updates cannot set.
    """
    for name, fields in recipe.updates.items():
        if name not in task.updates:
            raise unknown(f"update of task {recipe.task}", name, task.updates)
        for field in fields:
            if field not in UPDATE_FIELDS:
                raise unknown(f"field of update {name}", field, UPDATE_FIELDS)
    axes = None if model is None else {row.path: row.perm for row in layout(model)}
    optimizers = {}
    for name, update in task.updates.items():
        update_recipe = dataclasses.replace(recipe, **recipe.updates.get(name, {}))
        optimizers[name] = optim.create_optimizer(
            update_recipe.optimizer,
            learning_rate=repeated(schedule_of(update_recipe), update.times),
            weight_decay=update_recipe.weight_decay or 0.0,
            max_grad_norm=update_recipe.max_grad_norm or 0.0,
            axes=axes,
            **optimizer_options(update_recipe, update.times),
        )
    return optimizers


def optimizer_options(recipe: Recipe, times: int = 1) -> dict[str, Any]:
    """The options of a recipe's optimizer, with the momentum that its schedule cycles.

    Raises:
        UsageError: the schedule cycles the momentum of an optimizer that has none.
    """
    options = dict(recipe.optimizer_options)
    if (momentum := getattr(schedule_of(recipe), "momentum", None)) is None:
        return options
    known = optim.hyper_parameters(recipe.optimizer)
    momentum = repeated(momentum, times)
    if "betas" in known:
        options["betas"] = (momentum, options.get("betas", known["betas"])[1])
    elif "momentum" in known:
        options["momentum"] = momentum
    else:
        raise UsageError(f"{recipe.optimizer} has no momentum: leave out cycle_momentum of {recipe.schedule}")
    return options


def page_optimizer(page: Page) -> GradientTransformation:
    """The optimizer of a page's first recipe, its schedule included.

    Raises:
        UsageError: the page has no recipe, or its task has several optimizers.
    """
    recipe, _ = recipe_of(page.name, None, {})
    task = tasks.task(recipe.task, label_smoothing=recipe.label_smoothing or 0.0, **recipe.task_options)
    optimizers = optimizers_of(recipe, task)
    if len(optimizers) > 1:
        raise UsageError(
            f"{page.name} has an optimizer for each of {', '.join(optimizers)}: train.recipe.optimizers_of gives them"
        )
    return next(iter(optimizers.values()))


def schedule_of(recipe: Recipe) -> Schedule:
    """The learning rate as a function of the step, of a recipe whose values are filled in."""
    return optim.create_schedule(
        recipe.schedule,
        recipe.learning_rate or 0.0,
        recipe.warmup_steps or 0,
        recipe.steps,
        **recipe.schedule_options,
    )


def repeated(schedule: Schedule, times: int) -> Schedule:
    """A schedule of training steps for an optimizer that is applied `times` times in each of them."""
    return schedule if times == 1 else lambda count: schedule(count // times)


def _read_settings(
    settings: Mapping[str, str], recipe: Recipe, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the values of the recipe's fields, those of the model's arguments) that settings give."""
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    values: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for key, text in settings.items():
        group, _, field = key.partition(".")
        field = ALIASES.get(field, field)
        table, _, entry = field.partition(".")
        if group == "train" and table in TABLES:
            values[table] = {**values.get(table, getattr(recipe, table)), entry: _literal(text)}
        elif group == "train" and table == "updates":
            raise UsageError("train.updates cannot be set: write [train.updates.NAME] on the page")
        elif group == "train" and field in fields:
            values[field] = _typed(key, text, fields[field].type)
        elif group == "train":
            raise unknown("setting train.", field, fields)
        elif group == "model" and field in arguments:
            overrides[field] = _literal(text)
        elif group == "model":
            raise unknown("setting model.", field, arguments)
        else:
            raise unknown("setting", key, ["train.FIELD", "model.ARGUMENT"])
    return values, overrides


def _check(recipe: Recipe) -> None:
    for field in ("steps", "batch_size", "accumulate", "eval_every"):
        if getattr(recipe, field) < 1:
            raise UsageError(f"train.{field} must be at least 1, not {getattr(recipe, field)}")
    if recipe.batch_size % recipe.accumulate:
        raise UsageError(
            f"train.accumulate {recipe.accumulate} does not divide batch_size {recipe.batch_size}"
        )
    if recipe.adapters and recipe.mixed_precision:
        raise UsageError("train.mixed_precision leaves frozen weights as they are: do without it or adapters")
    if not 0 <= recipe.ema < 1:
        raise UsageError(f"train.ema must be in [0, 1), not {recipe.ema}")


def _literal(text: str) -> Any:
    """A Python literal, or true, false or none in any case; other text is a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(key: str, text: str, field_type: Any) -> Any:
    """A setting's value, of the type of its field.

    Raises:
        UsageError: it has another type.
    """
    value = _literal(text)
    types = [t for t in get_args(field_type) or (field_type,) if t is not type(None)]
    if type(value) is int and float in types:
        value = float(value)
    if type(value) not in types:
        names = " or ".join(t.__name__ for t in types)
        raise UsageError(f"{key}={text}: the value must be {names}")
    return value
