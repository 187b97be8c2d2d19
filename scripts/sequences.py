"""Draws the pictures of docs/sequences.md from finished runs: python scripts/sequences.py RUNS [docs/sequences]"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxarch import data, html
from jaxarch.data.sets import docstrings, spiral
from jaxarch.train import checkpoint
from jaxarch.train.tasks import forecast


def model_of(run: Path):
    """The trained model of a run in eval mode, and what its data is."""
    restored = checkpoint.load(run)
    model = restored.model()
    model.eval()
    return model


def rows(run: Path, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(r["step"], r[key]) for r in lines if key in r]
    return [s for s, _ in found], [v for _, v in found]


def smooth(values: list[float], width: int = 20) -> list[float]:
    """Means over the last `width` values."""
    return [float(np.mean(values[max(0, i - width + 1) : i + 1])) for i in range(len(values))]


def source(run: Path, name: str, arguments: dict, **options):
    return data.load(name, out=run, arguments=arguments, options=options, seed=0)


def draw_forecast(run: Path) -> str:
    """The first three tested years, each forecast a year ahead from what came before."""
    found = source(run, "co2", {"output_size": 12})
    model, series, cut, scale = model_of(run), *(found.extra[k] for k in ("series", "cut", "scale"))
    lines = {"measured": (list(range(-24, 36)), list(series[cut - 24 : cut + 36]))}
    for year in range(3):
        row = year * 12
        window = jnp.asarray(found.test["x"][row : row + 1])
        last = series[cut + row - 1]
        forecasts = {"GRUForecaster": model(window)}
        plain = forecast.baselines(window[..., 0], 12, 12)
        forecasts |= {"seasonal naive": plain["mae_seasonal"], "last value": plain["mae_last"]}
        for label, values in forecasts.items():
            x, y = lines.setdefault(label, ([], []))
            x += [*range(row, row + 12), row + 11.5]
            y += [*(np.asarray(values[0]) * scale + last), float("nan")]
    return html.curves(lines, xlabel="months of testing", ylabel="ppm")


def draw_spiral(run: Path) -> str:
    """A whole spiral from its start alone, eight times as long as any piece in training."""
    model, times = model_of(run), np.linspace(0, 8, 400)
    start = np.array([[2.0, 0.0]])
    found = np.asarray(jax.jit(model)(jnp.asarray(start, jnp.float32), jnp.asarray(times, jnp.float32))[0])
    truth = spiral.solve(start, times[None])[0]
    lines = {
        "true": (list(truth[:, 0]), list(truth[:, 1])),
        "NeuralODE": (list(found[:, 0]), list(found[:, 1])),
    }
    return html.curves(lines, xlabel="y1", ylabel="y2")


def draw_attention(run: Path) -> str:
    """What the attention network weighs in a docstring of the test files that it classifies rightly."""
    options = {"form": "sentences", "length": 20, "sentences": 6}
    found = source(run, "docstrings", {"vocab_size": 4000}, **options)
    ids, labels = found.test["ids"], found.test["label"]
    model = model_of(run)
    full = np.flatnonzero((ids > 0).any(-1).sum(1) >= 4)[:64]
    logits, (words, sentences) = jax.jit(lambda ids: model(ids, return_attention=True))(
        jnp.asarray(ids[full])
    )
    chances = np.asarray(jax.nn.softmax(logits, -1))
    best = int((chances[np.arange(len(full)), labels[full]]).argmax())
    text, label = found.extra["test"][full[best]]
    parts = [s[:20] for s in docstrings.in_sentences(text)[:6]]
    name = found.extra["parts"][label]
    note = f"A docstring of the part {name!r}, which the model gives {chances[best, label]:.0%}."
    weights = (np.asarray(words[best]), np.asarray(sentences[best]))
    return html.attention(parts, weights, title="Attention of a docstring", note=note)


CURVES = {  # picture: its metrics, by run, and what they are
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
    "dates": ({"seq2seq_rnn": "eval_signs"}, "right signs, free-running"),
    "co2": ({"gru_forecaster": "eval_mae"}, "mean absolute error, ppm"),
    "trajectory": ({"neural_ode": "loss"}, "training loss"),
}
DRAWINGS = {
    "forecast.svg": ("gru_forecaster", draw_forecast),
    "spiral.svg": ("neural_ode", draw_spiral),
    "attention.html": ("hierarchical_attention_network", draw_attention),
}


def main(runs: Path, out: Path, curves: dict = CURVES, drawings: dict = DRAWINGS) -> None:
    """Draw what belongs to the runs that are there, and say which are not."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = {name for lines, _ in curves.values() for name in lines} | {
        name for name, _ in drawings.values()
    }
    there = {name for name in wanted if (runs / name / "checkpoints").is_dir()}
    for picture, (lines, label) in curves.items():
        drawn = {name: rows(runs / name, key) for name, key in lines.items() if name in there}
        if drawn:
            drawn = {k: (x, smooth(y) if lines[k] == "loss" else y) for k, (x, y) in drawn.items()}
            (out / f"{picture}.svg").write_text(html.curves(drawn, xlabel="step", ylabel=label))
    for picture, (name, draw) in drawings.items():
        if name in there:
            (out / picture).write_text(draw(runs / name))
    if wanted - there:
        print(f"{runs} has no finished run of {', '.join(sorted(wanted - there))}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/sequences"))
