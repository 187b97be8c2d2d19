"""The training loop: take a step, log, evaluate, checkpoint."""

import functools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxarch.autodiff import AutogradMonitor
from jaxarch.errors import CheckpointError, UsageError
from jaxarch.state import merge
from jaxarch.train import checkpoint
from jaxarch.train.log import METRICS, MetricsLog, is_log, progress_bar
from jaxarch.train.plan import Run, prepare
from jaxarch.train.recipe import schedule_of
from jaxarch.train.step import TrainState, TrainStep, make_eval_step, make_train_step

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What a run returns.

    Attributes:
        out: its folder.
        history: the row of every step in metrics.jsonl.
        metrics: those of the last evaluation.
        state: the state after the last step.
        run: what it was made of.
    """

    out: Path
    history: list[dict[str, Any]]
    metrics: dict[str, float]
    state: TrainState
    run: Run


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

    Without `mesh` the batch is sharded over all devices. Writes to `out`: metrics.jsonl (one line per step, floats
    exact), TensorBoard events, checkpoints, and the best checkpoint by the task's score. At `stop_at`, and when
    interrupted, it checkpoints and stops. With `monitor` statistics of gradients, updates and activations are
    written to monitor.jsonl at every evaluation.

    Raises:
        UsageError: an argument does not fit; `out` holds a run and `resume` is False. A run that ended before
            its first checkpoint is begun again.
        CheckpointError: there is no intact checkpoint to resume from, or one could not be written.
        DivergenceError: a loss was not finite; the state is not saved.
    """
    out = Path(out)
    folder = out / checkpoint.FOLDER
    if resume and not checkpoint.steps(folder):
        raise CheckpointError(f"{out}: no checkpoint to resume from; leave out --resume to begin")
    if not resume:
        check_unused(out)
    run = prepare(name, variant=variant, settings=settings or {}, mesh=mesh, out=out, recipe=recipe)
    start, state, about = restore(run, out) if resume else (0, run.init(), {})
    last = run.recipe.steps if stop_at is None else min(stop_at, run.recipe.steps)

    train_step, monitored_step = make_train_steps(run)
    bar = progress_bar(
        run.name,
        total=run.recipe.steps,
        start=start,
        items=run.recipe.batch_size * run.source.items,
        unit=run.source.unit,
        show=progress,
    )
    log = MetricsLog(out, learning_rate=schedule_of(run.recipe), start=start, bar=bar)
    evaluate = Evaluation(run, out, log, best=about.get("best"), stale=about.get("stale", 0))
    save = Checkpointing(run, out, log, evaluate, last=last, saved=start)

    step = start
    with log:
        try:
            batch = run.training_batch(step)
            while step < last and not evaluate.patience_ran_out:
                take_step = monitored_step if (step + 1) % run.recipe.eval_every == 0 else train_step
                state, metrics = take_step(state, batch)
                step += 1
                if step < last:
                    batch = run.training_batch(step)  # while the device computes
                log(step, metrics)
                if evaluate.is_due(step):
                    evaluate(step, state)
                if save.is_due(step):
                    save(step, state)
        except KeyboardInterrupt:
            if step > save.saved:
                save(step, state)
            raise
        if not evaluate.metrics and step == start:  # a finished run that is resumed
            evaluate(step, state)
    return FitResult(out, log.history, evaluate.metrics, state, run)


def check_unused(out: Path) -> None:
    """Refuse a folder in which a new run would replace something; a log without a checkpoint is begun again.

    Raises:
        UsageError: it holds a run, or files with the names of a run's that are none.
    """
    if checkpoint.steps(out / checkpoint.FOLDER):
        raise UsageError(f"{out} holds a run already: continue it with --resume or choose another --out")
    if os.path.lexists(out / checkpoint.BEST):
        raise UsageError(f"{out / checkpoint.BEST} exists and would be replaced: choose another --out")
    if os.path.lexists(out / METRICS) and not is_log(out / METRICS):
        raise UsageError(f"{out / METRICS} exists and is no log of training: choose another --out")


def restore(run: Run, out: Path) -> tuple[int, TrainState, dict[str, Any]]:
    """(step, state, description) of the newest intact checkpoint of a run.

    Raises:
        CheckpointError: there is none.
        UsageError: it was trained with another recipe.
    """
    leaves_like = checkpoint.flatten(run.abstract)
    step, leaves, about = checkpoint.latest_intact(out / checkpoint.FOLDER, leaves_like)
    expected = json.loads(json.dumps({**run.about(), "versions": checkpoint.versions()}))
    for key in ("name", "variant", "recipe"):
        if about[key] != expected[key]:
            raise UsageError(
                f"{out} was trained with another {key}: repeat its settings or choose another --out"
            )
    for key in ("mesh", "versions"):
        if key in about and about[key] != expected[key]:
            _log.warning(
                "%s resumes with other %s, %s instead of %s: losses will not be equal in every bit",
                out,
                key,
                expected[key],
                about[key],
            )
    return step, checkpoint.unflatten(run.abstract, leaves), about


def make_train_steps(run: Run) -> tuple[TrainStep, TrainStep]:
    """(the plain step, the monitored step); one and the same without `monitor`."""
    recipe = run.recipe
    make = functools.partial(
        make_train_step,
        run.graph,
        run.task,
        run.optimizers,
        mixed_precision=bool(recipe.mixed_precision),
        accumulate=recipe.accumulate,
        ema=recipe.ema,
        seed=recipe.seed,
        shardings=jax.tree.map(lambda x: x.sharding, run.abstract),
    )
    train_step = make()
    if not recipe.monitor:
        return train_step, train_step
    monitor = AutogradMonitor(merge(run.graph, run.abstract.params, run.abstract.rest), every=1)
    # Compiled separately, so that only the steps whose measures are written pay for them.
    return train_step, make(monitor=monitor)


@dataclass
class Evaluation:
    """Evaluates every `eval_every` steps and after the run's last, and keeps the checkpoint of the best score.

    Attributes:
        best: the best score so far.
        stale: the number of evaluations since then.
        metrics: those of the last evaluation.
    """

    run: Run
    out: Path
    log: MetricsLog
    best: float | None = None
    stale: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._eval_step = make_eval_step(self.run.eval_graph, self.run.task)

    def is_due(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        return step % self.run.recipe.eval_every == 0 or step == self.run.recipe.steps

    @property
    def patience_ran_out(self) -> bool:
        """Whether the score has not improved for `patience` evaluations."""
        patience = self.run.recipe.patience
        return patience > 0 and self.stale >= patience

    def __call__(self, step: int, state: TrainState) -> None:
        """Compute and log the metrics over all evaluation batches.

        Raises:
            DivergenceError: the loss of the step is not finite.
        """
        self.log.flush()
        task = self.run.task
        self.metrics = {k: float(v) for k, v in task.summary(self._sums(state)).items()}
        self.log.write({"step": step, **{f"eval_{k}": v for k, v in self.metrics.items()}})
        key, higher_is_better = task.score
        score = self.metrics[key]
        if self.best is None or (score > self.best if higher_is_better else score < self.best):
            self.best, self.stale = score, 0
            checkpoint.write(self.out / checkpoint.BEST, state, self.about(step))
        else:
            self.stale += 1

    def _sums(self, state: TrainState) -> dict[str, np.ndarray]:
        """The task's sums over all evaluation batches, of the averaged parameters if there are any."""
        params = state.ema_params or state.params
        sums: dict[str, np.ndarray] = {}

        def add(batch_sums: Mapping[str, Any]) -> None:
            for k, v in batch_sums.items():
                sums[k] = np.add(sums[k], v) if k in sums else np.asarray(v)

        pending: Mapping[str, Any] = {}
        for index, batch in enumerate(self.run.source.evaluation(self.run.recipe.batch_size)):
            batch_sums = self._eval_step(params, state.rest, self.run.place(batch), index)
            # Read one batch late, as losses are: a long queue of sharded work can deadlock virtual CPU devices.
            add(pending)
            pending = batch_sums
        add(pending)
        return sums

    def about(self, step: int) -> dict[str, Any]:
        """The description of a checkpoint of this step."""
        return {**self.run.about(), "step": step, "best": self.best, "stale": self.stale}


@dataclass
class Checkpointing:
    """Writes a checkpoint every `save_every` steps, after every evaluation, and after the last step.

    Attributes:
        last: the step to stop at.
        saved: the step of the newest checkpoint.
    """

    run: Run
    out: Path
    log: MetricsLog
    evaluation: Evaluation
    last: int
    saved: int

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        every = self.run.recipe.save_every or self.run.recipe.eval_every
        return step % every == 0 or step == self.last or self.evaluation.is_due(step)

    def __call__(self, step: int, state: TrainState) -> None:
        """Write the state of this step.

        Raises:
            DivergenceError: the loss of the step is not finite.
            CheckpointError: the checkpoint could not be written.
        """
        self.log.flush()
        checkpoint.save(self.out / checkpoint.FOLDER, step, state, self.evaluation.about(step))
        self.saved = step
