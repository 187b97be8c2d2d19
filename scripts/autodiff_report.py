"""Write docs/autodiff.md and its figures: every autograd tool on a real training run.

    python scripts/autodiff_report.py [--steps 200] [--cost 10]

The run is the MLP on handwritten digits by its page's recipe. --cost N measures the monitor's overhead on N
steps of two larger models instead, and keeps it in docs/autodiff/cost.json for the report.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import autodiff, nn, optim, state
from jaxarch.html import curves
from jaxarch.losses import cross_entropy
from jaxarch.train import step
from jaxarch.train.plan import Run, prepare

Lines = dict[str, tuple[list[float], list[float]]]  # by label: x and y
DOCS = Path(__file__).parent.parent / "docs"
IMAGES = DOCS / "autodiff"
COSTS = IMAGES / "cost.json"
# What each step measures: nothing; the norms alone; zeros and histograms too.
LEVELS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "norms": {"activations": "", "every": 1},
    "norms, zeros, histograms": {"bins": 16, "every": 1},
}


def prepared_run(name: str, variant: str | None = None, **settings: str) -> Run:
    """A run of a page's recipe, before its first step."""
    out = Path(tempfile.mkdtemp()) / "run"
    return prepare(name, variant=variant, settings=settings, mesh="data=1", out=out)


def model_of(run: Run, current: step.TrainState) -> nnx.Module:
    """The model with the state's parameters."""
    return state.merge(run.graph, current.params, current.rest)


def measure_cost(name: str, variant: str, repeat: int) -> dict[str, Any]:
    """Milliseconds of processor time of a step for each level; the levels take turns."""
    run = prepared_run(name, variant)
    batch, initial = run.place(dict(run.sample)), run.init()
    model = model_of(run, initial)
    seconds: dict[str, list[float]] = {level: [] for level in LEVELS}
    steps, states = {}, {}
    for level, options in LEVELS.items():
        monitor = None if options is None else autodiff.AutogradMonitor(model, **options)
        steps[level] = step.make_train_step(run.graph, run.task, run.optimizers, monitor=monitor)
        states[level], metrics = steps[level](jax.tree.map(jnp.copy, initial), batch)
        jax.block_until_ready(metrics)
    for _ in range(repeat):
        for level, advance in steps.items():
            start = time.process_time()
            states[level], metrics = advance(states[level], batch)
            jax.block_until_ready((states[level], metrics))
            seconds[level].append(time.process_time() - start)
    parameters = sum(x.size for x in initial.params.values())
    means = {level: 1e3 * statistics.mean(values) for level, values in seconds.items()}
    return {
        "model": f"{name} ({variant})",
        "parameters": parameters,
        "repeat": repeat,
        "every": run.recipe.eval_every,
        "ms": means,
    }


@dataclass
class Training:
    """The state after training, and what was measured at each step."""

    state: step.TrainState
    measures: list[dict[str, Any]]
    losses: list[float]
    profiler: autodiff.AutogradProfiler
    monitor: autodiff.AutogradMonitor


def train(run: Run, steps: int, learning_rate: float | None = None) -> Training:
    """Train with a monitor, by the run's optimizers or by AdamW at a constant learning rate."""
    current = run.init()
    monitor = autodiff.AutogradMonitor(model_of(run, current), bins=32, low=-9, high=1, every=1)
    optimizers = run.optimizers
    if learning_rate is not None:
        optimizers = optim.create_optimizer("adamw", learning_rate=learning_rate)
        model = model_of(run, current)
        current = step.create_state(lambda: model, run.task, optimizers)
    advance = step.make_train_step(run.graph, run.task, optimizers, monitor=monitor)
    profiler = autodiff.AutogradProfiler()
    measures: list[dict[str, Any]] = []
    losses: list[float] = []
    for i in range(steps):
        with profiler.section("compile and first step" if i == 0 else "step") as section:
            with profiler.section("data"):
                batch = run.place(run.source.batch(run.recipe.seed, i, run.recipe.batch_size))
            with profiler.section("update") as update:
                current, metrics = update.watch(advance(current, batch))
            section.watch(metrics)
        measures.append(jax.device_get(metrics["monitor"]))
        losses.append(float(metrics["loss"]))
    return Training(current, measures, losses, profiler, monitor)


def draw(name: str, lines: Lines, ylabel: str, xlabel: str = "step") -> None:
    """Write a figure of curves."""
    (IMAGES / f"{name}.svg").write_text(curves(lines, xlabel=xlabel, ylabel=ylabel) + "\n")


def draw_measures(measures: list[dict[str, Any]]) -> None:
    """Figures of gradient norms, update ratios and gradient histograms of the weights."""
    steps = [float(i + 1) for i in range(len(measures))]
    weights = list(measures[0]["dead_rows"])
    norms = {k: (steps, [float(np.log10(m["grad_norm"][k])) for m in measures]) for k in weights}
    draw("gradients", norms, "log10 of the gradient's norm")
    ratios = {k: (steps, [float(np.log10(max(m["ratio"][k], 1e-9))) for m in measures]) for k in weights}
    draw("ratios", ratios, "log10 of update / weight")
    edges = np.linspace(-9, 1, 33)
    centres = list((edges[1:] + edges[:-1]) / 2)
    lines = {}
    for i in (0, len(measures) // 2, len(measures) - 1):
        counts = np.asarray(measures[i]["histogram"][weights[0]], float)
        lines[f"{weights[0]}, step {i + 1}"] = (centres, list(counts / counts.sum()))
    draw("histogram", lines, "share of entries", "log10 |gradient|")


class LogOfInput(nn.Module):
    """A common mistake: the logarithm of a pixel, which may be zero."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jnp.log(x)


def anomaly_text(run: Run, model: nnx.Module) -> str:
    """The message about the NaN that `LogOfInput` makes."""
    batch = run.place(run.source.batch(0, 0, 64))
    broken = nn.Sequential(LogOfInput(), model)

    def loss_fn(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        return cross_entropy(model(batch["x"]), batch["label"])

    try:
        autodiff.detect_anomaly(loss_fn, broken, batch)
    except autodiff.AnomalyError as error:
        return str(error)
    raise SystemExit("LogOfInput made no NaN")


def curvature(
    run: Run, current: step.TrainState, points: list[tuple[int, dict[str, jax.Array]]]
) -> tuple[str, dict[int, float]]:
    """(table of the Fisher diagonal in `current`, largest Hessian eigenvalue by step of `points`)."""
    batch = run.place(run.source.batch(0, 0, 256))

    def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return state.merge(run.eval_graph, params, current.rest)(x)

    tool = autodiff.AutogradOptimizer(lambda p: cross_entropy(logits(p, batch["x"]), batch["label"]), logits)
    keys = jax.random.split(jax.random.key(0), len(current.params))
    start = {
        k: jax.random.normal(key, v.shape, v.dtype)
        for key, (k, v) in zip(keys, current.params.items(), strict=True)
    }
    values = {i: float(tool.top_eigenvalue(params, start, steps=20)[0]) for i, params in points}
    steps = [float(i) for i in values]
    draw("sharpness", {"largest eigenvalue": (steps, list(values.values()))}, "eigenvalue")
    empirical = tool.fisher_diagonal(current.params, batch["x"], batch["label"])
    true = tool.fisher_diagonal(current.params, batch["x"])
    rows = ["| path | empirical | true |", "|---|---|---|"]
    rows += [
        f"| {k} | {float(empirical[k].mean()):.2e} | {float(true[k].mean()):.2e} |"
        for k in current.params
        if current.params[k].ndim > 1
    ]
    return "\n".join(rows), values


def report(steps: int) -> None:
    """Train the MLP, measure it with every tool and write the page."""
    run = prepared_run("mlp")
    with autodiff.memory_monitor("training") as memory:
        trained = train(run, steps)
    draw_measures(trained.measures)
    divergent = train(run, 40, learning_rate=3.0).losses
    losses = {"the page's recipe": trained.losses, "learning rate 3": divergent}
    draw("losses", {k: ([float(i + 1) for i in range(len(v))], v) for k, v in losses.items()}, "loss")
    findings = autodiff.AutogradDebugger(vanishing=1e-6).check(
        jax.grad(lambda p: eval_loss(run, p, trained.state))(trained.state.params)
    )
    points, current = [], run.init()
    plain = step.make_train_step(run.graph, run.task, run.optimizers)
    for i in range(steps + 1):
        if i % max(steps // 8, 1) == 0:
            points.append((i, jax.tree.map(jnp.copy, current.params)))
        current, _ = plain(current, run.place(run.source.batch(run.recipe.seed, i, run.recipe.batch_size)))
    fisher, sharpness = curvature(run, trained.state, points)
    cost = json.loads(COSTS.read_text()) if COSTS.exists() else []
    info = autodiff.device_info()
    text = Path(__file__).with_suffix(".md").read_text()
    values = {
        "steps": steps,
        "table": trained.monitor.table(trained.measures[-1]),
        "zeros": zeros_table(trained.measures[-1]),
        "findings": "\n".join(map(str, findings)) or "nothing",
        "verified": verified(run, trained.state),
        "anomaly": anomaly_text(run, model_of(run, trained.state)),
        "summary": trained.profiler.summary(),
        "memory": memory,
        "device": f"{info['framework']}, {info['backend']}, {len(info['devices'])} device",
        "fisher": fisher,
        "first": f"{sharpness[0]:.1f}",
        "last": f"{list(sharpness.values())[-1]:.1f}",
        "cost": cost_table(cost),
        "loss": f"{trained.losses[-1]:.3f}",
        "divergent": f"{divergent[-1]:.1f}" if math.isfinite(divergent[-1]) else "not finite",
    }
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", str(value).rstrip())
    (DOCS / "autodiff.md").write_text(text)


def eval_loss(run: Run, params: dict[str, jax.Array], current: step.TrainState) -> jax.Array:
    """The loss of 256 examples in eval mode, as a function of the parameters."""
    batch = run.place(run.source.batch(0, 0, 256))
    return cross_entropy(state.merge(run.eval_graph, params, current.rest)(batch["x"]), batch["label"])


def verified(run: Run, current: step.TrainState) -> str:
    """Error of the trained model's gradient against finite differences, in float64."""
    with jax.enable_x64(True):
        float64 = {k: jnp.asarray(np.asarray(v), float) for k, v in current.params.items()}
        rest = {
            k: v.astype(float) if jnp.issubdtype(v.dtype, jnp.floating) else v
            for k, v in current.rest.items()
        }
        batch = run.source.batch(0, 0, 64)
        x, label = jnp.asarray(batch["x"], float), jnp.asarray(batch["label"])
        errors = autodiff.verify_gradients(
            lambda p: cross_entropy(state.merge(run.eval_graph, p, rest)(x), label), float64, samples=6
        )
    return "\n".join(f"{path:20} {error:.1e}" for path, error in errors.items())


def zeros_table(measures: Mapping[str, Any]) -> str:
    """Fractions of zero activations by module."""
    zeros = {k: float(v) for k, v in measures["zero_activations"].items()}
    rows = ["| module | zeros in the output |", "|---|---|"]
    return "\n".join(rows + [f"| {k or 'the model'} | {v:.1%} |" for k, v in zeros.items() if v > 0])


def cost_table(cost: list[dict[str, Any]]) -> str:
    """The monitor's overhead by model and level."""
    rows = [
        "| model | parameters | " + " | ".join(LEVELS) + " | a recipe's run |",
        "|---|---|---|---|---|---|",
    ]
    for entry in cost:
        off, *more = [entry["ms"][k] for k in LEVELS]
        cells = [f"{off:.0f} ms"] + [f"{x / off - 1:+.1%}" for x in more]
        cells.append(f"{(more[-1] / off - 1) / entry['every']:+.1%} (every {entry['every']} steps)")
        rows.append(f"| {entry['model']} | {entry['parameters']:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Write the page, or measure what it says of the monitor's overhead."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cost", type=int, default=0, metavar="N", help="a multiple of ten")
    parser.add_argument(
        "--model", nargs=2, action="append", metavar=("NAME", "VARIANT"), help="what --cost measures"
    )
    args = parser.parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    if not args.cost:
        report(args.steps)
        return
    models = args.model or [("advanced_transformer", "pydoc"), ("advanced_cnn", "digits")]
    for name, variant in models:
        entry = measure_cost(name, variant, args.cost)
        entries = json.loads(COSTS.read_text()) if COSTS.exists() else []
        entries = [e for e in entries if e["model"] != entry["model"]] + [entry]
        COSTS.write_text(json.dumps(entries, indent=1) + "\n")
        print(entry, flush=True)


if __name__ == "__main__":
    main()
