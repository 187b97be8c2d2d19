"""The main job, end to end: train sharded, interrupt, resume, convert, prove, generate, report."""

import dataclasses
import importlib.metadata
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxarch import catalog, html, state
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.layout import layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.data.text import load_tokenizer
from jaxarch.generate import generate
from jaxarch.handover.optimizer import to_torch_optimizer
from jaxarch.parallel import describe
from jaxarch.parity.compare import BOUND, compare, largest, structural_zeros
from jaxarch.train import checkpoint, loop, step
from jaxarch.train.recipe import recipe_of, schedule_of

NAME, MESH, PROMPT = "advanced_transformer", "data=2,fsdp=2,tensor=2", "The for statement is used to"
STEPS, NEW_TOKENS = 5, 48
# "Clearly" better than a baseline: by a tenth of its perplexity at least.
MARGIN = 0.9


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    what: str
    measured: str
    wanted: str
    ok: bool


@dataclasses.dataclass
class Report:
    """What the demo found so far; its fields are what the report's template shows."""

    checks: list[Check] = dataclasses.field(default_factory=list)
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)

    def below(self, what: str, value: float, bound: float = BOUND) -> None:
        """A check that an error stays below a bound."""
        self.checks.append(Check(what, f"{value:.1e}", f"below {bound:.0e}", value <= bound))


def run(out: Path, *, steps: int | None, reference: Any) -> int:
    """Run the demo into the folder `out`, which is made anew, and print the report's path last.

    Args:
        out: the folder.
        steps: training steps; the page's if None.
        reference: the package `torchref`, its `train` and `generate` imported.

    Returns:
        0 if every check held, 1 if not.
    """
    console, start, report = Console(), time.monotonic(), Report()
    shutil.rmtree(out, ignore_errors=True)
    trained, middle = _train(out, steps, report, console)
    # From here on float64 decides; training was in float32.
    jax.config.update("jax_enable_x64", True)
    theirs, ours = _convert(out, trained, report, console, reference)
    _prove(trained, middle, theirs, ours, report, console, reference)
    _generate(out, theirs, ours, report, console, reference)
    seconds = time.monotonic() - start
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "torch", "transformers")
    page = html.render(
        "demo.html",
        summary=f"{NAME}, {trained.run.recipe.steps} steps on {MESH}, {seconds:.0f} s in all.",
        checks=report.checks,
        bound=f"{BOUND:.0e}",
        mesh=MESH,
        prompt=PROMPT,
        versions=", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages),
        **report.shown,
    )
    (out / "report.html").write_text(page)
    table = Table("check", "measured", "wanted", "")
    for c in report.checks:
        table.add_row(c.what, c.measured, c.wanted, "[green]ok[/]" if c.ok else "[red]failed[/]")
    console.print(table)
    console.print(f"{seconds:.0f} s")
    print(out / "report.html")
    return 0 if all(c.ok for c in report.checks) else 1


def _train(
    out: Path, steps: int | None, report: Report, console: Console
) -> tuple[loop.FitResult, checkpoint.Restored]:
    """Train with an interruption, and without one; -> the resumed run and its checkpoint half way."""
    settings = {} if steps is None else {"train.steps": str(steps)}
    total = steps or recipe_of(NAME, None, {})[0].steps
    half = total // 2
    console.rule(f"Train, and interrupt after step {half} of {total}")
    first = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "run", stop_at=half)
    baselines = first.run.source.extra["baselines"]
    console.print(f"baselines: unigram {baselines['unigram']:.1f}, bigram {baselines['bigram']:.1f}")
    middle = checkpoint.load(out / "run")
    console.rule("Resume from the checkpoint")
    resumed = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "run", resume=True)
    console.rule("The same run without the interruption")
    straight = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "uninterrupted")
    losses = [[row["loss"] for row in r.history] for r in (resumed, straight)]
    same = sum(a == b for a, b in zip(*losses, strict=False))
    perplexity = resumed.metrics["perplexity"]
    console.print(f"validation perplexity {perplexity:.1f}")
    for name, value in baselines.items():
        wanted, ok = f"below {MARGIN * value:.1f}", perplexity < MARGIN * value
        report.checks.append(Check(f"perplexity against {name} {value:.1f}", f"{perplexity:.1f}", wanted, ok))
    equal = losses[0] == losses[1] and len(losses[0]) == total
    report.checks.append(Check("losses bitwise equal after resuming", f"{same}", f"{total}", equal))
    x = [row["step"] for row in resumed.history]
    lines = {"interrupted and resumed": (x, losses[0]), "uninterrupted": (x[: len(losses[1])], losses[1])}
    params = resumed.run.abstract.params
    report.shown |= {
        "curve": html.curves(lines, xlabel="step", ylabel="training loss"),
        "perplexity": perplexity,
        "baselines": baselines,
        "half": half,
        "sharding": describe(params, {k: v.sharding for k, v in params.items()}),
    }
    return resumed, middle


def _convert(out: Path, trained: loop.FitResult, report: Report, console: Console, reference: Any):
    """Checkpoint -> safetensors -> torch, strictly; -> both models in float64."""
    console.rule("Convert, and prove in float64")
    restored = checkpoint.load(out / "run")
    file = out / "model.safetensors"
    rows = layout(restored.abstract())
    exported = to_torch(rows, {**restored.params, **restored.rest})
    write_tensors(file, exported)
    tensors = read_tensors(file)
    theirs = catalog.create_model(NAME, restored.about["variant"], package="torchref")
    theirs.load_state_dict({k: as_tensor(v) for k, v in tensors.items()}, strict=True)
    loaded = {k: as_numpy(v) for k, v in theirs.state_dict().items()}
    differ = sum(loaded[k].tobytes() != v.tobytes() for k, v in exported.items())
    ours = catalog.create_model(NAME, restored.about["variant"])
    load_state_dict(ours, tensors)
    back = to_state_dict(ours)
    differ += sum(back[k].astype(v.dtype).tobytes() != v.tobytes() for k, v in exported.items())
    what = f"weights that differ in any bit, of {len(exported)}"
    report.checks.append(Check(what, str(differ), "0", differ == 0 and loaded.keys() == exported.keys()))
    report.shown["differing"] = differ
    ours.eval()
    return theirs.double().eval(), ours


def _prove(trained, middle, theirs, ours, report: Report, console: Console, reference: Any) -> None:
    """Outputs and gradients on real text, then the next AdamW steps from the checkpoint half way."""
    import torch

    run = trained.run
    batch = run.source.batch(run.recipe.seed, 0, 8)
    ids = {k: torch.from_numpy(v).long() for k, v in batch.items()}
    rows = [r for r in layout(ours) if r.trainable]
    graph, params, rest = state.split(ours)

    @jax.jit
    def losses(params):
        def loss(params):
            outputs = state.merge(graph, params, rest)(**{k: jnp.asarray(v) for k, v in batch.items()})
            return outputs["loss"], outputs["logits"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), gradients = losses(params)
    outputs = theirs(**ids)
    outputs["loss"].backward()
    a = {"logits": as_numpy(outputs["logits"]), "loss": as_numpy(outputs["loss"])}
    report.below("outputs", compare(a, {"logits": np.asarray(logits), "loss": np.asarray(loss)}).worst)
    a = {k: as_numpy(p.grad).copy() for k, p in theirs.named_parameters()}
    gradient = _compared(a, to_torch(rows, gradients))
    report.below("gradients", gradient.worst)
    stepped = _step_both(run, middle, rows, report, reference)
    by_column = {"gradient": gradient, **stepped}
    report.shown["parity"] = [
        {"path": r.torch, **{column: e.by_name[r.torch] for column, e in by_column.items()}} for r in rows
    ]


def _step_both(run, middle: checkpoint.Restored, rows, report: Report, reference: Any) -> dict[str, Any]:
    """The next steps of both frameworks from one checkpoint, moments included; -> errors by column."""
    import torch

    model = catalog.create_model(NAME, middle.about["variant"])
    load_state_dict(model, to_torch(layout(model), {**middle.params, **middle.rest}))
    model.eval()
    graph, params, rest = state.split(model)
    fresh = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={k: o.init(params) for k, o in run.optimizers.items()},
        ema_params={},
    )
    saved = checkpoint.flatten(fresh)
    moments = {k: v for k, v in middle.leaves.items() if k in saved and ".rngs." not in k}
    current = checkpoint.unflatten(
        fresh, {k: jnp.asarray(moments[k]).astype(v.dtype) if k in moments else v for k, v in saved.items()}
    )
    theirs = catalog.create_model(NAME, middle.about["variant"], package="torchref").double().eval()
    theirs.load_state_dict({k: as_tensor(v) for k, v in to_state_dict(model).items()}, strict=True)
    optimizer = to_torch_optimizer(rows, current.opt_state)
    start, recipe = int(current.step), run.recipe
    batches = [run.source.batch(recipe.seed, start + i, 8) for i in range(STEPS)]
    advance = step.make_train_step(graph, run.task, run.optimizers)
    for batch in batches:
        current, _ = advance(current, {k: jnp.asarray(v) for k, v in batch.items()})
    schedule = schedule_of(recipe)
    _, torch_optimizer = reference.train.train_steps(
        theirs,
        [{k: torch.from_numpy(v).long() for k, v in batch.items()} for batch in batches],
        lambda model, batch: model(**batch)["loss"],
        learning_rate=lambda i: float(schedule(i)),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optimizer_state=optimizer,
        start_step=start,
    )
    ours = to_torch_optimizer(rows, current.opt_state)
    named = dict(theirs.named_parameters())
    errors = {
        "stepped": _compared(
            {k: as_numpy(p).copy() for k, p in named.items()}, to_torch(rows, current.params)
        )
    }
    for moment in ("exp_avg", "exp_avg_sq"):
        a = {k: as_numpy(torch_optimizer.state[p][moment]) for k, p in named.items()}
        errors[moment] = _compared(a, {k: np.asarray(v[moment]) for k, v in ours.items()})
    for what, error in errors.items():
        names = {"stepped": "weights", "exp_avg": "first moments", "exp_avg_sq": "second moments"}
        report.below(f"{names[what]} after {STEPS} more steps", error.worst)
    return errors


def _compared(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]):
    zeros = structural_zeros(theirs, ours)
    return compare(theirs, ours, zeros=zeros, scale=largest(theirs))


def _generate(out: Path, theirs, ours, report: Report, console: Console, reference: Any) -> None:
    """Greedy text from both frameworks."""
    import torch

    console.rule("Generate")
    tokenizer = load_tokenizer(out / "run")
    ids = tokenizer(PROMPT)["input_ids"]
    rows = {
        "jaxarch": generate(ours, jnp.asarray([ids]), NEW_TOKENS)[0].tolist(),
        "torchref": reference.generate.generate(theirs, torch.tensor([ids]), NEW_TOKENS)[0].tolist(),
    }
    texts = [{"framework": k, "text": tokenizer.decode(v)} for k, v in rows.items()]
    for t in texts:
        console.print(f"[bold]{t['framework']}[/]:")
        console.print(t["text"], markup=False, highlight=False)
    same = sum(a == b for a, b in zip(*rows.values(), strict=False))
    ok = rows["jaxarch"] == rows["torchref"] and len(rows["jaxarch"]) == len(ids) + NEW_TOKENS
    report.checks.append(Check("equal tokens of greedy text", str(same), str(len(ids) + NEW_TOKENS), ok))
    report.shown["texts"] = texts
