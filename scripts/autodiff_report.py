"""Write docs/autodiff.md and its pictures: every autograd tool on a real training run.

    python scripts/autodiff_report.py [--steps 200] [--cost 10]

The run is the MLP on handwritten digits by its page's recipe. --cost N measures the monitor's price on N
steps of two larger models instead, and keeps it in docs/autodiff/cost.json for the report.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxarch import autodiff, nn, optim, state
from jaxarch.html import curves
from jaxarch.losses import cross_entropy
from jaxarch.train import step
from jaxarch.train.plan import Run, prepare

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "autodiff"
COSTS = PICTURES / "cost.json"
# What each step measures: nothing; the norms alone; zeros and histograms too.
LEVELS = {
    "off": None,
    "norms": {"activations": "", "every": 1},
    "norms, zeros, histograms": {"bins": 16, "every": 1},
}


def prepared(name: str, variant: str | None = None, **settings: str) -> Run:
    """A run of a page's recipe, before its first step."""
    out = Path(tempfile.mkdtemp()) / "run"
    return prepare(name, variant=variant, settings=settings, mesh="data=1", out=out)


def model_of(run: Run, now: step.TrainState) -> nnx.Module:
    return state.merge(run.graph, now.params, now.rest)


def measure_cost(name: str, variant: str, repeat: int) -> dict:
    """Milliseconds of processor time of a step for each level; they take turns."""
    run = prepared(name, variant)
    batch, start = run.place(run.sample), run.init()
    model = model_of(run, start)
    steps, states, seconds = {}, {}, {level: [] for level in LEVELS}
    for level, options in LEVELS.items():
        monitor = None if options is None else autodiff.AutogradMonitor(model, **options)
        steps[level] = step.make_train_step(run.graph, run.task, run.optimizers, monitor=monitor)
        states[level], metrics = steps[level](jax.tree.map(jnp.copy, start), batch)
        jax.block_until_ready(metrics)
    for _ in range(repeat):
        for level, advance in steps.items():
            begun = time.process_time()
            states[level], metrics = advance(states[level], batch)
            jax.block_until_ready((states[level], metrics))
            seconds[level].append(time.process_time() - begun)
    parameters = sum(x.size for x in start.params.values())
    means = {level: 1e3 * statistics.mean(values) for level, values in seconds.items()}
    return {
        "model": f"{name} ({variant})",
        "parameters": parameters,
        "repeat": repeat,
        "every": run.recipe.eval_every,
        "ms": means,
    }


def train(run: Run, steps: int, learning_rate: float | None = None):
    """Train with a monitor; -> (state, what the monitor saw in each step, losses, time in sections)."""
    now = run.init()
    monitor = autodiff.AutogradMonitor(model_of(run, now), bins=32, low=-9, high=1, every=1)
    optimizers = run.optimizers
    if learning_rate is not None:
        optimizers = optim.create_optimizer("adamw", learning_rate=learning_rate)
        now = step.create_state(lambda: model_of(run, now), run.task, optimizers)
    advance = step.make_train_step(run.graph, run.task, optimizers, monitor=monitor)
    profiler, seen, losses = autodiff.AutogradProfiler(), [], []
    for i in range(steps):
        with profiler.section("compile and first step" if i == 0 else "step") as section:
            with profiler.section("data"):
                batch = run.place(run.source.batch(run.recipe.seed, i, run.recipe.batch_size))
            with profiler.section("update") as update:
                now, metrics = update.watch(advance(now, batch))
            section.watch(metrics)
        seen.append(jax.device_get(metrics["monitor"]))
        losses.append(float(metrics["loss"]))
    return now, seen, losses, profiler, monitor


def picture(name: str, lines: dict, ylabel: str, xlabel: str = "step") -> None:
    (PICTURES / f"{name}.svg").write_text(curves(lines, xlabel=xlabel, ylabel=ylabel) + "\n")


def monitor_pictures(seen: list, steps: int) -> None:
    at = list(range(1, steps + 1))
    weights = list(seen[0]["dead_rows"])
    norms = {k: (at, [float(np.log10(s["grad_norm"][k])) for s in seen]) for k in weights}
    picture("gradients", norms, "log10 of the gradient's norm")
    ratios = {k: (at, [float(np.log10(max(s["ratio"][k], 1e-9))) for s in seen]) for k in weights}
    picture("ratios", ratios, "log10 of update / weight")
    edges = np.linspace(-9, 1, 33)
    middle = list((edges[1:] + edges[:-1]) / 2)
    lines = {}
    for i in (0, len(seen) // 2, len(seen) - 1):
        counts = np.asarray(seen[i]["histogram"][weights[0]], float)
        lines[f"{weights[0]}, step {i + 1}"] = (middle, list(counts / counts.sum()))
    picture("histogram", lines, "share of entries", "log10 |gradient|")


class LogOfInput(nn.Module):
    """A mistake that anyone can make: the logarithm of a pixel, which may be zero."""

    def __call__(self, x):
        return x * jnp.log(x)


def anomaly_text(run: Run, model: nnx.Module) -> str:
    batch = run.place(run.source.batch(0, 0, 64))
    broken = nn.Sequential(LogOfInput(), model)

    def loss_fn(model, batch):
        return cross_entropy(model(batch["x"]), batch["label"])

    try:
        autodiff.detect_anomaly(loss_fn, broken, batch)
    except autodiff.AnomalyError as error:
        return str(error)
    raise SystemExit("the mistake made no NaN")


def curvature(run: Run, now: step.TrainState, losses_at: list) -> tuple[str, dict]:
    """The largest eigenvalue at each of several points of the run, and Fisher's diagonal at the last."""
    batch = run.place(run.source.batch(0, 0, 256))

    def logits(params, x):
        return state.merge(run.eval_graph, params, now.rest)(x)

    tool = autodiff.AutogradOptimizer(lambda p: cross_entropy(logits(p, batch["x"]), batch["label"]), logits)
    keys = jax.random.split(jax.random.key(0), len(now.params))
    start = {
        k: jax.random.normal(key, v.shape, v.dtype)
        for key, (k, v) in zip(keys, now.params.items(), strict=True)
    }
    values = [(at, float(tool.top_eigenvalue(params, start, steps=20)[0])) for at, params in losses_at]
    picture(
        "sharpness", {"largest eigenvalue": ([a for a, _ in values], [v for _, v in values])}, "eigenvalue"
    )
    empirical = tool.fisher_diagonal(now.params, batch["x"], batch["label"])
    true = tool.fisher_diagonal(now.params, batch["x"])
    rows = ["| path | empirical | true |", "|---|---|---|"]
    rows += [
        f"| {k} | {float(empirical[k].mean()):.2e} | {float(true[k].mean()):.2e} |"
        for k in now.params
        if now.params[k].ndim > 1
    ]
    return "\n".join(rows), dict(values)


def report(steps: int) -> None:
    run = prepared("mlp")
    with autodiff.memory_monitor("training") as memory:
        now, seen, losses, profiler, monitor = train(run, steps)
    monitor_pictures(seen, steps)
    _, _, wild, _, _ = train(run, 40, learning_rate=3.0)
    picture(
        "losses",
        {
            "the page's recipe": (list(range(1, steps + 1)), losses),
            "learning rate 3": (list(range(1, 41)), wild),
        },
        "loss",
    )
    findings = autodiff.AutogradDebugger(vanishing=1e-6).check(
        jax.grad(lambda p: gradient_point(run, p, now))(now.params)
    )
    points, current = [], run.init()
    plain = step.make_train_step(run.graph, run.task, run.optimizers)
    for i in range(steps + 1):
        if i % max(steps // 8, 1) == 0:
            points.append((i, jax.tree.map(jnp.copy, current.params)))
        current, _ = plain(current, run.place(run.source.batch(run.recipe.seed, i, run.recipe.batch_size)))
    fisher, sharpness = curvature(run, now, points)
    cost = json.loads(COSTS.read_text()) if COSTS.exists() else []
    info = autodiff.device_info()
    text = Path(__file__).with_suffix(".md").read_text()
    values = {
        "steps": steps,
        "table": monitor.table(seen[-1]),
        "zeros": zeros_table(seen),
        "findings": "\n".join(map(str, findings)) or "nothing",
        "verified": verified(run, now),
        "anomaly": anomaly_text(run, model_of(run, now)),
        "summary": profiler.summary(),
        "memory": memory,
        "device": f"{info['framework']}, {info['backend']}, {len(info['devices'])} device",
        "fisher": fisher,
        "first": f"{sharpness[0]:.1f}",
        "last": f"{list(sharpness.values())[-1]:.1f}",
        "cost": cost_table(cost),
        "loss": f"{losses[-1]:.3f}",
        "wild": "not finite" if not math.isfinite(wild[-1]) else f"{wild[-1]:.1f}",
    }
    for key, value in values.items():
        text = text.replace(f"{{{{{key}}}}}", str(value).rstrip())
    (DOCS / "autodiff.md").write_text(text)


def gradient_point(run: Run, params, now: step.TrainState):
    batch = run.place(run.source.batch(0, 0, 256))
    return cross_entropy(state.merge(run.eval_graph, params, now.rest)(batch["x"]), batch["label"])


def verified(run: Run, now: step.TrainState) -> str:
    """The trained model's gradient against differences, in float64."""
    with jax.enable_x64(True):
        wide = {k: jnp.asarray(np.asarray(v), float) for k, v in now.params.items()}
        rest = {
            k: v.astype(float) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in now.rest.items()
        }
        batch = run.source.batch(0, 0, 64)
        x, label = jnp.asarray(batch["x"], float), jnp.asarray(batch["label"])
        errors = autodiff.verify_gradients(
            lambda p: cross_entropy(state.merge(run.eval_graph, p, rest)(x), label), wide, samples=6
        )
    return "\n".join(f"{path:20} {error:.1e}" for path, error in errors.items())


def zeros_table(seen: list) -> str:
    last = {k: float(v) for k, v in seen[-1]["zero_activations"].items()}
    rows = ["| module | zeros in the output |", "|---|---|"]
    return "\n".join(rows + [f"| {k or 'the model'} | {v:.1%} |" for k, v in last.items() if v > 0])


def cost_table(cost: list) -> str:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cost", type=int, default=0, metavar="N", help="a multiple of ten")
    parser.add_argument(
        "--model", nargs=2, action="append", metavar=("NAME", "VARIANT"), help="what --cost measures"
    )
    args = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    if not args.cost:
        report(args.steps)
        return
    models = args.model or [("advanced_transformer", "pydoc"), ("advanced_cnn", "digits")]
    for name, variant in models:
        entry = measure_cost(name, variant, args.cost)
        found = json.loads(COSTS.read_text()) if COSTS.exists() else []
        found = [e for e in found if e["model"] != entry["model"]] + [entry]
        COSTS.write_text(json.dumps(found, indent=1) + "\n")
        print(entry, flush=True)


if __name__ == "__main__":
    main()
