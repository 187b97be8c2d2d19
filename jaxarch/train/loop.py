"""The training loop: take a step, log, evaluate, checkpoint."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxarch import state
from jaxarch.autodiff import AutogradMonitor
from jaxarch.errors import CheckpointError, UsageError
from jaxarch.train import checkpoint
from jaxarch.train.log import METRICS, MetricsLog, progress_bar
from jaxarch.train.plan import Run, prepare
from jaxarch.train.recipe import schedule_of
from jaxarch.train.step import TrainState, make_eval_step, make_train_step


@dataclass(frozen=True)
class FitResult:
    """What a run left: its folder, the loss of every step, the last evaluation, and the state."""

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

    Without `mesh` the batch is split over all devices. Writes to `out`: metrics.jsonl (one line a step, floats
    exact), TensorBoard events, checkpoints, the best checkpoint by the task's score. With `stop_at`, and when
    interrupted, it checkpoints and stops. With `monitor` statistics of gradients, updates and activations are
    written to monitor.jsonl at every evaluation.

    Raises:
        UsageError: something that was asked for does not fit; `out` holds a run and `resume` is False.
        CheckpointError: nothing intact to resume from, or the checkpoint could not be written.
        DivergenceError: a loss was not finite; the state is not saved.
    """
    out = Path(out)
    folder = out / checkpoint.FOLDER
    if resume and not checkpoint.steps(folder):
        raise CheckpointError(f"{out}: no checkpoint to resume from; leave out --resume to begin")
    if not resume and (folder.exists() or (out / METRICS).exists()):
        raise UsageError(f"{out} holds a run already: continue it with --resume or choose another --out")
    run = prepare(name, variant=variant, settings=settings or {}, mesh=mesh, out=out, recipe=recipe)
    start, train_state, about = restore(run, out) if resume else (0, run.init(), {})
    last = run.recipe.steps if stop_at is None else min(stop_at, run.recipe.steps)

    train_step, monitored_step = make_train_steps(run)
    log = MetricsLog(
        out,
        learning_rate=schedule_of(run.recipe),
        start=start,
        bar=progress_bar(
            run.name,
            total=run.recipe.steps,
            start=start,
            items=run.recipe.batch_size * run.source.items,
            unit=run.source.unit,
            show=progress,
        ),
    )
    evaluate = Evaluation(run, out, log, best=about.get("best"), stale=about.get("stale", 0))
    save = Checkpointing(run, out, last, evaluate, saved=start)

    step = start
    with log:
        try:
            batch = run.training_batch(step)
            while step < last and not evaluate.patience_ran_out:
                take_step = monitored_step if (step + 1) % run.recipe.eval_every == 0 else train_step
                train_state, metrics = take_step(train_state, batch)
                step += 1
                if step < last:
                    batch = run.training_batch(step)
                log(step, metrics)
                if evaluate.due(step):
                    log.flush()
                    evaluate(step, train_state)
                if save.due(step):
                    log.flush()
                    save(step, train_state)
        except KeyboardInterrupt:
            log.flush()
            if step > save.saved:
                save(step, train_state)
            raise
        if step == start and not evaluate.metrics:  # a finished run that is resumed
            evaluate(step, train_state)
    return FitResult(out, log.history, evaluate.metrics, train_state, run)


def restore(run: Run, out: Path) -> tuple[int, TrainState, dict[str, Any]]:
    """(step, state, description) of the newest intact checkpoint of a run.

    Raises:
        CheckpointError: there is none.
        UsageError: it was trained with another recipe.
    """
    leaves_like = checkpoint.flatten(run.abstract)
    step, leaves, about = checkpoint.latest_intact(out / checkpoint.FOLDER, leaves_like)
    for key in ("name", "variant", "recipe"):
        if about[key] != json.loads(json.dumps(run.about()[key])):
            raise UsageError(
                f"{out} was trained with another {key}: repeat its settings or choose another --out"
            )
    return step, checkpoint.unflatten(run.abstract, leaves), about


Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_train_steps(run: Run) -> tuple[Step, Step]:
    """(the plain step, the step that the monitor watches); one and the same without `monitor`."""
    recipe = run.recipe
    make = functools.partial(
        make_train_step,
        run.graph,
        run.task,
        run.optimizers,
        mixed_precision=bool(recipe.mixed_precision),
        accumulate=recipe.accumulate,
        average=recipe.ema,
        seed=recipe.seed,
        placed=jax.tree.map(lambda x: x.sharding, run.abstract),
    )
    train_step = make()
    if not recipe.monitor:
        return train_step, train_step
    monitor = AutogradMonitor(state.merge(run.graph, run.abstract.params, run.abstract.rest), every=1)
    # A step of its own for what is written: the others pay nothing.
    return train_step, make(monitor=monitor)


@dataclass
class Evaluation:
    """Evaluate every `eval_every` steps and after the last, and keep the checkpoint with the best score."""

    run: Run
    out: Path
    log: MetricsLog
    best: float | None = None
    stale: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = make_eval_step(self.run.eval_graph, self.run.task)

    def due(self, step: int) -> bool:
        """Whether this step is followed by an evaluation."""
        return step % self.run.recipe.eval_every == 0 or step == self.run.recipe.steps

    @property
    def patience_ran_out(self) -> bool:
        """Whether the score has not improved for `patience` evaluations."""
        patience = self.run.recipe.patience
        return patience > 0 and self.stale >= patience

    def __call__(self, step: int, train_state: TrainState) -> None:
        """Compute the metrics over all evaluation batches."""
        params = train_state.average or train_state.params
        sums: dict[str, np.ndarray] = {}

        def add(batch_sums: Mapping[str, Any]) -> None:
            for k, v in batch_sums.items():
                sums[k] = np.add(sums[k], v) if k in sums else np.asarray(v)

        pending: Mapping[str, Any] = {}
        for index, batch in enumerate(self.run.source.evaluation(self.run.recipe.batch_size)):
            batch_sums = self._sums(params, train_state.rest, self.run.place(batch), index)
            # Read a batch late, like the losses: a long queue of sharded work can lock virtual CPU devices up.
            add(pending)
            pending = batch_sums
        add(pending)
        self.metrics = {k: float(v) for k, v in self.run.task.summary(sums).items()}
        self.log.write({"step": step, **{f"eval_{k}": v for k, v in self.metrics.items()}})
        key, higher_is_better = self.run.task.score
        score = self.metrics[key]
        if self.best is None or (score > self.best if higher_is_better else score < self.best):
            self.best, self.stale = score, 0
            checkpoint.write(self.out / checkpoint.BEST, train_state, self.about(step))
        else:
            self.stale += 1

    def about(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {**self.run.about(), "step": step, "best": self.best, "stale": self.stale}


@dataclass
class Checkpointing:
    """Write a checkpoint every `save_every` steps, after every evaluation, and after the last step."""

    run: Run
    out: Path
    last: int
    evaluation: Evaluation
    saved: int

    def due(self, step: int) -> bool:
        """Whether this step is followed by a checkpoint."""
        every = self.run.recipe.save_every or self.run.recipe.eval_every
        return step % every == 0 or step == self.last or self.evaluation.due(step)

    def __call__(self, step: int, train_state: TrainState) -> None:
        """Write the state of this step."""
        checkpoint.save(self.out / checkpoint.FOLDER, step, train_state, self.evaluation.about(step))
        self.saved = step
