"""The one training loop: a page's recipe, sharded, logged, checkpointed, resumed."""

import ast
import contextlib
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxarch import catalog, state
from jaxarch.autodiff import AutogradMonitor
from jaxarch.errors import CheckpointError, DivergenceError, UsageError, unknown
from jaxarch.nn import make_rngs
from jaxarch.parallel import batch_sharding, make_mesh, parse_mesh, shardings
from jaxarch.spec import Recipe
from jaxarch.train import checkpoint, data, finetune, optim, step, tasks

ALIASES = {"lr": "learning_rate"}
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "max_grad_norm": 1.0,
    "mixed_precision": False,
    "label_smoothing": 0.0,
}
METRICS, MONITOR = "metrics.jsonl", "monitor.jsonl"
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


@dataclass(frozen=True)
class FitResult:
    """What a run left: its folder, the loss of every step, the last evaluation, and the state."""

    out: Path
    history: list[dict[str, Any]]
    metrics: dict[str, float]
    state: step.TrainState
    run: "Run"


@dataclass(frozen=True)
class Run:
    """Everything a run is made of, built before its first step."""

    name: str
    variant: str
    overrides: dict[str, Any]
    recipe: Recipe
    mesh: jax.sharding.Mesh
    task: tasks.Task
    source: data.Source
    optimizers: Mapping[str, Any]
    sample: Mapping[str, Any]
    graph: nnx.GraphDef
    eval_graph: nnx.GraphDef
    abstract: step.TrainState
    init: Any

    def place(self, batch: data.Batch) -> dict[str, jax.Array]:
        """A batch on the devices, its rows over data and fsdp, its numbers as wide as JAX's own."""
        sharding = batch_sharding(self.mesh, len(next(iter(batch.values()))))
        return {k: jax.device_put(v.astype(data.working_dtype(v.dtype)), sharding) for k, v in batch.items()}

    def about(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        recipe = dataclasses.asdict(self.recipe)
        mesh = dict(self.mesh.shape)
        return {
            "name": self.name,
            "variant": self.variant,
            "overrides": self.overrides,
            "recipe": recipe,
            "mesh": mesh,
            "classes": self.source.classes,
            "sample": {k: [v.shape, str(v.dtype)] for k, v in self.sample.items()},
        }


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


def prepare(
    name: str,
    *,
    variant: str | None,
    settings: Mapping[str, str],
    mesh: str | None,
    out: Path,
    recipe: str | None = None,
) -> Run:
    """Check everything that can be checked before the first step, and compile nothing yet.

    Raises:
        UsageError: a name, setting, mesh or sharding that does not fit.
        DataError: the data is missing or does not fit the model.
    """
    made, variant, overrides = recipe_of(name, variant, settings, recipe)
    devices = make_mesh(parse_mesh(mesh or f"data={jax.device_count()}"))
    batch_sharding(devices, made.batch_size)
    arguments = catalog.arguments(name, variant, overrides)
    source = data.load(made.data, out=out, arguments=arguments, options=made.options, seed=made.seed)
    task = tasks.task(made.task, label_smoothing=made.label_smoothing or 0.0, **made.task_options)
    optimizers = optimizers_of(made, task)
    sample = source.batch(made.seed, 0, made.batch_size)

    def build(weights: state.Flat) -> nnx.Module:
        rngs = make_rngs(made.seed)
        model = catalog.create_model(name, variant, rngs=rngs, **overrides)
        state.update(model, weights)
        finetune.adapt(model, made.adapters, rngs)
        return task.wrap(model, sample, source.classes, rngs)

    model = nnx.eval_shape(lambda: build({}))
    model.train()
    graph = state.split(model).graph
    model.eval()
    eval_graph = state.split(model).graph

    def create(weights: state.Flat) -> step.TrainState:
        return step.create_state(lambda: build(weights), task, optimizers, average=made.ema > 0)

    abstract = jax.eval_shape(create, {})
    placed = placement(abstract, devices, catalog.page(name).sharding)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed)
    born = jax.jit(create, out_shardings=placed)

    def init() -> step.TrainState:
        # Read when a run begins: a run that goes on needs no folder.
        if not made.init:
            return born({})
        bare = nnx.eval_shape(lambda: catalog.create_model(name, variant, **overrides))
        return born(finetune.starting_weights(made.init, bare, name, arguments))

    return Run(
        name=name,
        variant=variant,
        overrides=overrides,
        recipe=made,
        mesh=devices,
        task=task,
        source=source,
        optimizers=optimizers,
        sample=sample,
        graph=graph,
        eval_graph=eval_graph,
        abstract=abstract,
        init=init,
    )


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


def placement(abstract: step.TrainState, mesh: jax.sharding.Mesh, exceptions: Mapping[str, Any]) -> Any:
    """A sharding for each leaf: parameters by their path, moments as their parameter, the rest everywhere."""
    by_path = shardings(abstract.params, mesh, exceptions)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def moment(path, leaf):
        keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
        return by_path.get(keys[-1], everywhere) if keys else everywhere

    return step.TrainState(
        step=everywhere,
        params=by_path,
        rest=dict.fromkeys(abstract.rest, everywhere),
        opt_state=jax.tree_util.tree_map_with_path(moment, abstract.opt_state),
        average={k: by_path[k] for k in abstract.average},
    )


def fit(
    name: str,
    *,
    variant: str | None = None,
    settings: Mapping[str, str] | None = None,
    mesh: str | None = None,
    out: str | os.PathLike,
    recipe: str | None = None,
    resume: bool = False,
    stop_at: int | None = None,
    progress: bool = True,
) -> FitResult:
    """Train a model of the catalog by a recipe of its page, the first if none is named.

    Without `mesh` the batch is split over all devices. Writes to `out`: metrics.jsonl (one line a step, floats
    exact), TensorBoard events, checkpoints, the best checkpoint by the task's score. With `stop_at`, and when
    interrupted, it checkpoints and stops. With `monitor` what gradients, updates and activations look like is
    written to monitor.jsonl at every evaluation.

    Raises:
        UsageError: something that was asked for does not fit; `out` holds a run and `resume` is False.
        CheckpointError: nothing intact to resume from, or the disk refused.
        DivergenceError: a loss was not finite; the state is not saved.
    """
    out = Path(out)
    folder = out / checkpoint.FOLDER
    if resume and not checkpoint.steps(folder):
        raise CheckpointError(f"{out}: no checkpoint to resume from; leave out --resume to begin")
    if not resume and (folder.exists() or (out / METRICS).exists()):
        raise UsageError(f"{out} holds a run already: continue it with --resume or choose another --out")
    run = prepare(name, variant=variant, settings=settings or {}, mesh=mesh, out=out, recipe=recipe)
    if resume:
        like = checkpoint.flatten(run.abstract)
        start, leaves, about = checkpoint.latest_intact(folder, like)
        current, best = checkpoint.unflatten(run.abstract, leaves), about.get("best")
        stale = about.get("stale", 0)
        for key in ("name", "variant", "recipe"):
            if about[key] != json.loads(json.dumps(run.about()[key])):
                raise UsageError(
                    f"{out} was trained with another {key}: repeat its settings or choose another --out"
                )
    else:
        start, current, best, stale = 0, run.init(), None, 0
    out.mkdir(parents=True, exist_ok=True)
    history = _history(out / METRICS, start)
    return _Loop(run, out, progress, best, stale, history).run_to(current, start, stop_at)


class _Loop:
    """The steps of one call of fit."""

    def __init__(self, run: Run, out: Path, progress: bool, best, stale: int, history: list[dict]):
        self.run, self.out, self.progress = run, out, progress
        self.best, self.stale, self.history = best, stale, history
        self.metrics: dict[str, float] = {}
        recipe = run.recipe
        make = functools.partial(
            step.make_train_step,
            run.graph,
            run.task,
            run.optimizers,
            mixed_precision=bool(recipe.mixed_precision),
            accumulate=recipe.accumulate,
            average=recipe.ema,
            seed=recipe.seed,
            placed=jax.tree.map(lambda x: x.sharding, run.abstract),
        )
        self.step = self.watched = make()
        if recipe.monitor:
            monitor = AutogradMonitor(state.merge(run.graph, run.abstract.params, run.abstract.rest), every=1)
            # A step of its own for what is written: the others pay nothing.
            self.watched = make(monitor=monitor)
        self.count = step.make_eval_step(run.eval_graph, run.task)
        self.schedule = schedule_of(recipe)

    def run_to(self, current: step.TrainState, start: int, stop_at: int | None) -> FitResult:
        from tensorboardX import SummaryWriter

        recipe, total = self.run.recipe, self.run.recipe.steps
        end = total if stop_at is None else min(stop_at, total)
        every = recipe.save_every or recipe.eval_every
        saved = start
        with (
            open(self.out / METRICS, "a") as self.log,
            SummaryWriter(str(self.out / "tensorboard")) as self.board,
            _bar(self.progress, self.run, total, start) as bar,
        ):
            pending: tuple[int, Any] | None = None
            at = start
            try:
                batch = self.run.place(self.run.source.batch(recipe.seed, at, recipe.batch_size))
                while at < end:
                    at += 1
                    advance = self.watched if at % recipe.eval_every == 0 else self.step
                    current, results = advance(current, batch)
                    if at < end:
                        batch = self.run.place(self.run.source.batch(recipe.seed, at, recipe.batch_size))
                    # The loss is read a step late: reading it at once would wait for the device.
                    if pending:
                        bar(self._record(*pending))
                    pending = (at, results)
                    due = at % recipe.eval_every == 0 or at == total
                    if due or at % every == 0 or at == end:
                        bar(self._record(*pending))
                        pending = None
                        if due and self._evaluate(current, at):
                            break
                        self._save(current, at)
                        saved = at
            except KeyboardInterrupt:
                if pending:
                    self._record(*pending)
                if at > saved:
                    self._save(current, at)
                raise
            if at == start and not self.metrics:
                self._evaluate(current, at)
        return FitResult(self.out, self.history, self.metrics, current, self.run)

    def _record(self, at: int, results: Mapping[str, Any]) -> dict[str, Any]:
        row = {"step": at, **{k: float(v) for k, v in results.items() if not k.startswith("monitor")}}
        row["lr"] = float(self.schedule(at - 1))
        if not math.isfinite(row["loss"]):
            raise DivergenceError(
                f"the loss of step {at} is {row['loss']}: lower train.lr or train.max_grad_norm;"
                f" checkpoints in {self.out} are from before"
            )
        self.history.append(row)
        self._write(row)
        for key in results.keys() - row.keys():
            measures = jax.tree.map(lambda x: np.asarray(x).tolist(), results[key])
            with open(self.out / MONITOR, "a") as file:
                file.write(json.dumps({"step": at, "update": key, **measures}) + "\n")
        return row

    def _evaluate(self, current: step.TrainState, at: int) -> bool:
        """Evaluate, keep the best; True if patience has run out."""
        recipe = self.run.recipe
        params = current.average or current.params
        sums: dict[str, np.ndarray] = {}

        def add(counted: Mapping[str, Any]) -> None:
            for k, v in counted.items():
                sums[k] = np.add(sums[k], v) if k in sums else np.asarray(v)

        pending: Mapping[str, Any] = {}
        for index, batch in enumerate(self.run.source.evaluation(recipe.batch_size)):
            counted = self.count(params, current.rest, self.run.place(batch), index)
            # Read a batch late, like the losses: a long queue of sharded work can lock virtual CPU devices up.
            add(pending)
            pending = counted
        add(pending)
        told = self.run.task.summary(sums)
        self.metrics = {k: float(v) for k, v in told.items()}
        self._write({"step": at, **{f"eval_{k}": v for k, v in self.metrics.items()}})
        key, more = self.run.task.score
        score = self.metrics[key]
        if self.best is None or (score > self.best if more else score < self.best):
            self.best, self.stale = score, 0
            checkpoint.write(self.out / checkpoint.BEST, current, self._about(at))
        else:
            self.stale += 1
        if recipe.patience and self.stale >= recipe.patience:
            self._save(current, at)
            return True
        return False

    def _save(self, current: step.TrainState, at: int) -> None:
        checkpoint.save(self.out / checkpoint.FOLDER, at, current, self._about(at))

    def _about(self, at: int) -> dict[str, Any]:
        return {**self.run.about(), "step": at, "best": self.best, "stale": self.stale}

    def _write(self, row: Mapping[str, Any]) -> None:
        self.log.write(json.dumps(row) + "\n")
        self.log.flush()
        for key, value in row.items():
            if key != "step":
                self.board.add_scalar(key, value, row["step"])


@contextlib.contextmanager
def _bar(show: bool, run: Run, total: int, start: int) -> Iterator[Any]:
    """A progress bar with loss, items per second and time left; yields what to call after each step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(run.name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
    )
    items, begun = run.recipe.batch_size * run.source.items, time.monotonic()
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        bar = progress.add_task(
            "", total=total, completed=start, loss=math.nan, speed=0.0, unit=run.source.unit
        )

        def advance(row: Mapping[str, Any]) -> None:
            speed = (row["step"] - start) * items / max(time.monotonic() - begun, 1e-9)
            progress.update(bar, completed=row["step"], loss=row["loss"], speed=speed)

        yield advance


def _history(path: Path, start: int) -> list[dict[str, Any]]:
    """The training rows of a log up to a step; the file is cut there, since later steps will come again."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [r for r in rows if r["step"] <= start]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
    os.replace(temporary, path)
    return [r for r in kept if "loss" in r]


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
