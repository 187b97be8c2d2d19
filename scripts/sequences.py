"""Draws the figures of docs/sequences.md from finished runs: python scripts/sequences.py RUNS [docs/sequences]"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxarch import data, html
from jaxarch.data.sets import docstrings, spiral
from jaxarch.files import write_text
from jaxarch.train import checkpoint
from jaxarch.train.tasks import forecast

Lines = dict[str, tuple[list[float], list[float]]]  # by label: x and y
Curves = dict[str, tuple[dict[str, str], str]]
Drawings = dict[str, tuple[str, Callable[[Path], str]]]


def model_of(run: Path) -> Any:
    """The trained model of a run, in eval mode."""
    model = checkpoint.load(run).model()
    model.eval()
    return model


def rows(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(r["step"], r[key]) for r in lines if key in r]
    return [s for s, _ in points], [v for _, v in points]


def smooth(values: list[float], width: int = 20) -> list[float]:
    """Means over the last `width` values."""
    return [float(np.mean(values[max(0, i - width + 1) : i + 1])) for i in range(len(values))]


def source(run: Path, name: str, arguments: dict[str, Any], **options: Any) -> Any:
    """A data set, with the tokenizer of the run where it has one."""
    return data.load(name, out=run, arguments=arguments, options=options)


def draw_forecast(run: Path) -> str:
    """The first three years of the test data, each forecast from the months before it."""
    co2 = source(run, "co2", {"pred_steps": 12})
    model, series, cut, scale = model_of(run), *(co2.extra[k] for k in ("series", "cut", "scale"))
    months = [float(i) for i in range(-24, 36)]
    lines: Lines = {"measured": (months, list(series[cut - 24 : cut + 36]))}
    for year in range(3):
        row = year * 12
        window = jnp.asarray(co2.test["x"][row : row + 1])
        last = series[cut + row - 1]
        forecasts = {"GRUForecaster": model(window)}
        baselines = forecast.baselines(window[..., 0], 12, 12)
        forecasts |= {"seasonal naive": baselines["mae_seasonal"], "last value": baselines["mae_last"]}
        for label, values in forecasts.items():
            x, y = lines.setdefault(label, ([], []))
            x += [*range(row, row + 12), row + 11.5]
            y += [*(np.asarray(values[0]) * scale + last), float("nan")]
    return html.curves(lines, xlabel="months of testing", ylabel="ppm")


def draw_spiral(run: Path) -> str:
    """A whole spiral from its starting point, eight times as long as any training sequence."""
    model, times = model_of(run), np.linspace(0, 8, 400)
    start = np.array([[2.0, 0.0]])
    solved = np.asarray(jax.jit(model)(jnp.asarray(start, jnp.float32), jnp.asarray(times, jnp.float32))[0])
    truth = spiral.solve(start, times[None])[0]
    lines = {
        "true": (list(truth[:, 0]), list(truth[:, 1])),
        "NeuralODE": (list(solved[:, 0]), list(solved[:, 1])),
    }
    return html.curves(lines, xlabel="y1", ylabel="y2")


def draw_attention(run: Path) -> str:
    """Attention of the network over the docstring, of 64 in the test data, that it classifies most surely."""
    options = {"form": "sentences", "length": 20, "sentences": 6}
    pages = source(run, "docstrings", {"vocab_size": 4000}, **options)
    ids, labels = pages.test["ids"], pages.test["label"]
    model = model_of(run)
    full = np.flatnonzero((ids > 0).any(-1).sum(1) >= 4)[:64]
    logits, (words, sentences) = jax.jit(lambda ids: model(ids, return_attention=True))(
        jnp.asarray(ids[full])
    )
    probabilities = np.asarray(jax.nn.softmax(logits, -1))
    best = int((probabilities[np.arange(len(full)), labels[full]]).argmax())
    text, label = pages.extra["test"][full[best]]
    parts = [s[:20] for s in docstrings.in_sentences(text)[:6]]
    name = pages.extra["parts"][label]
    note = f"A docstring of the part {name!r}, to which the model gives {probabilities[best, label]:.0%}."
    weights = (np.asarray(words[best]), np.asarray(sentences[best]))
    return html.attention(parts, weights, title="Attention of a docstring", note=note)


CURVES: Curves = {  # figure: its metrics by run, and their label
    "docstrings": (
        dict.fromkeys(
            ("cnn_lstm_hybrid", "deep_residual_cnn", "hierarchical_attention_network"), "eval_accuracy"
        ),
        "test accuracy",
    ),
    "language_model": (
        dict.fromkeys(("bi_lstm", "bi_lstm_truncated"), "eval_perplexity"),
        "test perplexity of masked tokens",
    ),
    "frames": ({"conv_lstm": "eval_mse"}, "squared error of the next frame"),
    "dates": ({"seq2seq_rnn": "eval_characters"}, "right characters, free-running"),
    "co2": ({"gru_forecaster": "eval_mae"}, "mean absolute error, ppm"),
    "trajectory": ({"neural_ode": "loss"}, "training loss"),
}
DRAWINGS: Drawings = {
    "forecast.svg": ("gru_forecaster", draw_forecast),
    "spiral.svg": ("neural_ode", draw_spiral),
    "attention.html": ("hierarchical_attention_network", draw_attention),
}


def main(runs: Path, out: Path, curves: Curves = CURVES, drawings: Drawings = DRAWINGS) -> None:
    """Draw the figures whose runs are all finished, and name the missing runs of the others."""
    names = {n for metrics, _ in curves.values() for n in metrics} | {n for n, _ in drawings.values()}
    finished = {name for name in names if (runs / name / "checkpoints").is_dir()}
    for figure, (metrics, label) in curves.items():
        if metrics.keys() <= finished:
            lines = {name: rows(runs / name, key) for name, key in metrics.items()}
            lines = {k: (x, smooth(y) if metrics[k] == "loss" else y) for k, (x, y) in lines.items()}
            write_text(out / f"{figure}.svg", html.curves(lines, xlabel="step", ylabel=label))
    for figure, (name, draw) in drawings.items():
        if name in finished:
            write_text(out / figure, draw(runs / name))
    if names - finished:
        print(f"{runs} has no finished run of {', '.join(sorted(names - finished))}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/sequences"))
