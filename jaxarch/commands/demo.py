"""`jaxarch demo`, end to end: train sharded, interrupt, resume, convert, prove, generate, report."""

import argparse
import dataclasses
import importlib.metadata
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxarch import catalog, html, reference, state
from jaxarch.arrays import as_numpy, as_tensor
from jaxarch.convert import load_state_dict, to_state_dict
from jaxarch.convert.files import read_tensors, write_tensors
from jaxarch.convert.layout import Row, layout
from jaxarch.convert.state_dict import to_torch
from jaxarch.data.text import load_tokenizer
from jaxarch.errors import UsageError, require, require_torch
from jaxarch.generate import generate
from jaxarch.handover.optimizer import to_torch_optimizer
from jaxarch.parallel import describe
from jaxarch.parity.compare import BOUND, Errors, compare, largest, structural_zeros
from jaxarch.runtime import configure_jax
from jaxarch.train import checkpoint, loop, step
from jaxarch.train.plan import Run
from jaxarch.train.recipe import recipe_of, schedule_of

if TYPE_CHECKING:
    import torch

NAME, MESH, PROMPT = "advanced_transformer", "data=2,fsdp=2,tensor=2", "The for statement is used to"
STEPS, NEW_TOKENS = 5, 48
MARGIN = 0.9  # the perplexity must be below this fraction of each baseline's
DEVICES = 8
# The file that marks a folder as the demo's, and the names of all that it writes there.
MARK = ".jaxarch-demo"
WRITTEN = re.compile(
    r"\.jaxarch-demo|report\.html|model\.safetensors[^/]*"
    r"|(run|uninterrupted)/((metrics|monitor)\.jsonl|tokenizer\.json|(checkpoints|best|tensorboard)/.+|\.[^/]*)"
)
EXTRAS = {"jinja2": "viz", "matplotlib": "viz", "tokenizers": "hub", "transformers": "hub"}


def run(args: argparse.Namespace) -> int:
    """Run the demo on virtual CPU devices; 0 if every check held, 1 if not.

    Raises:
        UsageError: torch, or a package of the extras viz and hub, is missing.
    """
    require_torch("the demo")
    for package, extra in EXTRAS.items():
        require(package, extra, "the demo")
    configure_jax(cpu=True, devices=DEVICES)
    return demo(Path(args.out), steps=args.steps)


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    what: str
    measured: str
    expected: str
    ok: bool


@dataclasses.dataclass
class Report:
    """The results so far: the checks, and the other values of the report's template by name."""

    checks: list[Check] = dataclasses.field(default_factory=list)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def below(self, what: str, value: float, bound: float = BOUND) -> None:
        """Add a check that an error is below a bound."""
        self.checks.append(Check(what, f"{value:.1e}", f"below {bound:.0e}", value <= bound))


def demo(out: Path, *, steps: int | None = None) -> int:
    """Run the demo into the folder `out`, and print the report's path last.

    Args:
        out: a new or empty folder, or that of an earlier demo, whose files are replaced.
        steps: training steps; the page's if None.

    Returns:
        0 if every check held, 1 if not.

    Raises:
        UsageError: `out` holds something else, or cannot be written; fewer than two steps.
    """
    console, start, report = Console(), time.monotonic(), Report()
    steps = recipe_of(NAME, None, {} if steps is None else {"train.steps": str(steps)})[0].steps
    if steps < 2:
        raise UsageError(f"--steps {steps}: the demo interrupts a run, which takes at least 2 steps")
    clear(out)
    trained, halfway = _train(out, steps, report, console)
    # Training was in float32; proofs are in float64.
    jax.config.update("jax_enable_x64", True)
    torch_model, model = _convert(out, report, console)
    _prove(trained.run, halfway, torch_model, model, report)
    _generate(out, torch_model, model, report, console)
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
        **report.values,
    )
    (out / "report.html").write_text(page)
    table = Table("check", "measured", "expected", "")
    for c in report.checks:
        table.add_row(c.what, c.measured, c.expected, "[green]ok[/]" if c.ok else "[red]failed[/]")
    console.print(table)
    console.print(f"{seconds:.0f} s")
    print(out / "report.html")
    return 0 if all(c.ok for c in report.checks) else 1


def clear(out: Path) -> None:
    """Make `out` an empty folder that is marked as the demo's; only files of an earlier demo are removed.

    Raises:
        UsageError: it holds something else, which is named, or it cannot be written.
    """
    try:
        entries = list(out.rglob("*")) if os.path.lexists(out) else []
        names = {p.relative_to(out).as_posix() for p in entries if p.is_symlink() or not p.is_dir()}
        others = sorted(n for n in names if MARK not in names or not WRITTEN.fullmatch(n))
        if others or (os.path.lexists(out) and (out.is_symlink() or not out.is_dir())):
            other = out / others[0] if others else out
            raise UsageError(f"{other} was not written by the demo: choose another folder with --out")
        for name in names - {MARK}:
            (out / name).unlink()
        for folder in sorted((p for p in entries if p.is_dir()), reverse=True):
            folder.rmdir()
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
    except OSError as e:
        raise UsageError(f"{out} cannot hold the demo: {e.strerror or e}; choose another folder") from None


def _train(
    out: Path, total: int, report: Report, console: Console
) -> tuple[loop.FitResult, checkpoint.Restored]:
    """Train with an interruption and without one; -> the resumed run and the checkpoint halfway."""
    settings = {"train.steps": str(total)}
    half = total // 2
    console.rule(f"Train, and interrupt after step {half} of {total}")
    first = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "run", stop_at=half)
    baselines = first.run.source.extra["baselines"]
    console.print(f"baselines: unigram {baselines['unigram']:.1f}, bigram {baselines['bigram']:.1f}")
    halfway = checkpoint.load(out / "run")
    console.rule("Resume from the checkpoint")
    resumed = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "run", resume=True)
    console.rule("The same run without the interruption")
    straight = loop.fit(NAME, settings=settings, mesh=MESH, out=out / "uninterrupted")
    losses = [[row["loss"] for row in r.history] for r in (resumed, straight)]
    same = sum(a == b for a, b in zip(*losses, strict=False))
    perplexity = resumed.metrics["perplexity"]
    console.print(f"validation perplexity {perplexity:.1f}")
    for name, value in baselines.items():
        what, expected = f"perplexity against {name} {value:.1f}", f"below {MARGIN * value:.1f}"
        report.checks.append(Check(what, f"{perplexity:.1f}", expected, perplexity < MARGIN * value))
    equal = losses[0] == losses[1] and len(losses[0]) == total
    report.checks.append(Check("losses bitwise equal after resuming", f"{same}", f"{total}", equal))
    x = [row["step"] for row in resumed.history]
    lines = {"interrupted and resumed": (x, losses[0]), "uninterrupted": (x[: len(losses[1])], losses[1])}
    params = resumed.run.abstract.params
    report.values |= {
        "curve": html.curves(lines, xlabel="step", ylabel="training loss"),
        "perplexity": perplexity,
        "baselines": baselines,
        "half": half,
        "sharding": describe(params, {k: v.sharding for k, v in params.items()}),
    }
    return resumed, halfway


def _convert(out: Path, report: Report, console: Console) -> "tuple[torch.nn.Module, nnx.Module]":
    """Checkpoint -> safetensors -> torch, strictly; -> both models in float64 and eval mode."""
    console.rule("Convert, and prove in float64")
    restored = checkpoint.load(out / "run")
    file = out / "model.safetensors"
    rows = layout(restored.abstract())
    exported = to_torch(rows, {**restored.params, **restored.rest})
    write_tensors(file, exported)
    tensors = read_tensors(file)
    variant = restored.about["variant"]
    torch_model = catalog.create_model(NAME, variant, package="torchref")
    torch_model.load_state_dict({k: as_tensor(v) for k, v in tensors.items()}, strict=True)
    loaded = {k: as_numpy(v) for k, v in torch_model.state_dict().items()}
    differing = sum(loaded[k].tobytes() != v.tobytes() for k, v in exported.items())
    model = catalog.create_model(NAME, variant)
    load_state_dict(model, tensors)
    back = to_state_dict(model)
    differing += sum(back[k].astype(v.dtype).tobytes() != v.tobytes() for k, v in exported.items())
    what, same_keys = f"weights that differ in any bit, of {len(exported)}", loaded.keys() == exported.keys()
    report.checks.append(Check(what, str(differing), "0", differing == 0 and same_keys))
    report.values["differing"] = differing
    model.eval()
    return torch_model.double().eval(), model


def _prove(
    run: Run, halfway: checkpoint.Restored, torch_model: "torch.nn.Module", model: nnx.Module, report: Report
) -> None:
    """Outputs and gradients on real text, then the next AdamW steps from the checkpoint halfway."""
    batch = run.source.batch(run.recipe.seed, 0, 8)
    rows = [r for r in layout(model) if r.trainable]
    graph, params, rest = state.split(model)

    @jax.jit
    def losses(params: state.Flat) -> Any:
        def loss(params: state.Flat) -> tuple[jax.Array, jax.Array]:
            outputs = state.merge(graph, params, rest)(**{k: jnp.asarray(v) for k, v in batch.items()})
            return outputs["loss"], outputs["logits"]

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), grads = losses(params)
    outputs = torch_model(**_tensors(batch))
    outputs["loss"].backward()
    expected = {k: as_numpy(outputs[k]) for k in ("logits", "loss")}
    report.below("outputs", compare(expected, {"logits": np.asarray(logits), "loss": np.asarray(loss)}).worst)
    torch_grads = {k: as_numpy(p.grad).copy() for k, p in torch_model.named_parameters()}
    gradient = _compared(torch_grads, to_torch(rows, grads))
    report.below("gradients", gradient.worst)
    columns = {"gradient": gradient, **_step_both(run, halfway, rows, report)}
    report.values["parity"] = [
        {"path": r.torch, **{column: e.by_name[r.torch] for column, e in columns.items()}} for r in rows
    ]


def _step_both(run: Run, halfway: checkpoint.Restored, rows: list[Row], report: Report) -> dict[str, Errors]:
    """The next steps of both frameworks from one checkpoint, moments included; -> errors by column."""
    variant = halfway.about["variant"]
    model = catalog.create_model(NAME, variant)
    load_state_dict(model, to_torch(layout(model), {**halfway.params, **halfway.rest}))
    model.eval()
    train_state = _train_state(run, halfway, model)
    torch_model = catalog.create_model(NAME, variant, package="torchref").double().eval()
    torch_model.load_state_dict({k: as_tensor(v) for k, v in to_state_dict(model).items()}, strict=True)
    optimizer_state = to_torch_optimizer(rows, train_state.opt_state)
    start, recipe = int(train_state.step), run.recipe
    batches = [run.source.batch(recipe.seed, start + i, 8) for i in range(STEPS)]
    train_step = step.make_train_step(state.split(model).graph, run.task, run.optimizers)
    for batch in batches:
        train_state, _ = train_step(train_state, {k: jnp.asarray(v) for k, v in batch.items()})
    schedule = schedule_of(recipe)
    _, torch_optimizer = reference.load("train", "the demo").train_steps(
        torch_model,
        [_tensors(batch) for batch in batches],
        lambda model, batch: model(**batch)["loss"],
        learning_rate=lambda i: float(schedule(i)),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optimizer_state=optimizer_state,
        start_step=start,
    )
    moments = to_torch_optimizer(rows, train_state.opt_state)
    named = dict(torch_model.named_parameters())
    weights = {k: as_numpy(p).copy() for k, p in named.items()}
    errors = {"stepped": _compared(weights, to_torch(rows, train_state.params))}
    for moment in ("exp_avg", "exp_avg_sq"):
        expected = {k: as_numpy(torch_optimizer.state[p][moment]) for k, p in named.items()}
        errors[moment] = _compared(expected, {k: np.asarray(v[moment]) for k, v in moments.items()})
    names = {"stepped": "weights", "exp_avg": "first moments", "exp_avg_sq": "second moments"}
    for column, error in errors.items():
        report.below(f"{names[column]} after {STEPS} more steps", error.worst)
    return errors


def _train_state(run: Run, restored: checkpoint.Restored, model: nnx.Module) -> step.TrainState:
    """The state of a checkpoint in the dtypes of a model that holds its weights."""
    _, params, rest = state.split(model)
    initial = step.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        rest=rest,
        opt_state={k: o.init(params) for k, o in run.optimizers.items()},
        ema_params={},
    )
    leaves = checkpoint.flatten(initial)
    stored = {k: v for k, v in restored.leaves.items() if k in leaves and ".rngs." not in k}
    leaves |= {k: jnp.asarray(v).astype(leaves[k].dtype) for k, v in stored.items()}
    return checkpoint.unflatten(initial, leaves)


def _tensors(batch: Mapping[str, np.ndarray]) -> "dict[str, torch.Tensor]":
    return {k: as_tensor(v).long() for k, v in batch.items()}


def _compared(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> Errors:
    zeros = structural_zeros(expected, actual)
    return compare(expected, actual, zeros=zeros, scale=largest(expected))


def _generate(
    out: Path, torch_model: "torch.nn.Module", model: nnx.Module, report: Report, console: Console
) -> None:
    """Greedy text from both frameworks."""
    console.rule("Generate")
    tokenizer = load_tokenizer(out / "run")
    ids = tokenizer(PROMPT)["input_ids"]
    torch_ids = _tensors({"input_ids": np.asarray([ids])})["input_ids"]
    torch_generate = reference.load("generate", "the demo").generate
    tokens = {
        "jaxarch": generate(model, jnp.asarray([ids]), NEW_TOKENS)[0].tolist(),
        "torchref": torch_generate(torch_model, torch_ids, NEW_TOKENS)[0].tolist(),
    }
    texts = [{"framework": k, "text": tokenizer.decode(v)} for k, v in tokens.items()]
    for t in texts:
        console.print(f"[bold]{t['framework']}[/]:")
        console.print(t["text"], markup=False, highlight=False)
    same = sum(a == b for a, b in zip(*tokens.values(), strict=False))
    total = len(ids) + NEW_TOKENS
    ok = tokens["jaxarch"] == tokens["torchref"] and len(tokens["jaxarch"]) == total
    report.checks.append(Check("equal tokens of greedy text", str(same), str(total), ok))
    report.values["texts"] = texts
