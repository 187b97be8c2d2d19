"""Draws the figures of docs/transformers.md from runs: python scripts/transformer_report.py RUNS [FOLDER]

It prints what the page's tables need: baselines, sizes, samples. --cost N times N steps of each fine-tuning
recipe instead, on an otherwise idle machine.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from sequences import Curves, Drawings, Lines, main, model_of, rows, source

from jaxarch import catalog, html
from jaxarch.commands.generate import continue_text
from jaxarch.data.sets import dates, help_pages
from jaxarch.generate import translate
from jaxarch.train import checkpoint, step
from jaxarch.train.plan import prepare

MINILM = "bert_for_sequence_classification"
CURVES: Curves = {"minilm": (dict.fromkeys(("minilm_lora", "minilm_full"), "eval_accuracy"), "test accuracy")}
HEADS = {"part": "accuracy_part", "function": "accuracy_function", "ease": "r2_ease"}


def draw_text(run: Path) -> str:
    """Perplexity by step, and that of the n-gram baselines."""
    arguments = checkpoint.load(run).about["overrides"]
    arguments = catalog.arguments("advanced_transformer", "pydoc", arguments)
    steps, perplexity = rows(run, "eval_perplexity")
    lines: Lines = {"AdvancedTransformerModel": (steps, perplexity)}
    baselines = source(run, "pydoc_topics", arguments).extra["baselines"]
    lines |= {k: ([steps[0], steps[-1]], [v, v]) for k, v in baselines.items()}
    text = continue_text(run, "The for statement is used to", max_new_tokens=40)
    print(f"{run}: perplexity {perplexity[-1]:.2f}, {baselines}, greedy: {text!r}")
    return html.curves(lines, xlabel="step", ylabel="test perplexity of a token")


def draw_dates(run: Path) -> str:
    """Accuracy of whole dates and of characters under greedy decoding."""
    model = model_of(run)
    examples = ["tuesday, 4 march 2003", "3/4/2003", "sun feb 29 1948", "31-dec-1999"]
    src = jnp.asarray(dates.encode(examples, dates.LONGEST))
    for text, ids in zip(examples, translate(model, src, 11, bos_token_id=1, eos_token_id=2), strict=True):
        print(f"{text} -> {''.join(dates.SYMBOLS[i] for i in ids)}")
    lines = {"whole dates": rows(run, "eval_exact"), "characters": rows(run, "eval_characters")}
    return html.curves(lines, xlabel="step", ylabel="accuracy on the test dates, greedy")


def draw_heads(run: Path) -> str:
    """The metric of each head by step."""
    arguments = catalog.arguments("custom_multi_task_seo_model", "help_pages")
    print(f"{run}: {help_pages.baselines(source(run, 'help_pages', arguments))}")
    lines = {key: rows(run, f"eval_{key}") for key in HEADS.values()}
    return html.curves(lines, xlabel="step", ylabel="accuracy or R2 on the test pages")


DRAWINGS: Drawings = {
    "pydoc.svg": ("advanced_transformer", draw_text),
    "dates.svg": ("transformer", draw_dates),
    "help_pages.svg": ("custom_multi_task_seo_model", draw_heads),
}


def print_sizes(run: Path) -> None:
    """Print the number of trained parameters and the size of the optimizer state."""
    restored = checkpoint.load(run)
    opt_state = [v for k, v in restored.leaves.items() if k.startswith("opt_state/")]
    trainable = sum(v.size for v in restored.params.values())
    print(f"{run}: {trainable:,} trained, optimizer {sum(v.nbytes for v in opt_state):,} bytes")


def print_cost(recipe: str, steps: int) -> None:
    """Print the median time of a training step of a fine-tuning recipe."""
    with tempfile.TemporaryDirectory() as out:
        run = prepare(MINILM, variant=None, settings={}, mesh="data=1", out=Path(out), recipe=recipe)
        train_step = step.make_train_step(run.graph, run.task, run.optimizers)
        current, batch, seconds = run.init(), run.place(dict(run.sample)), []
        for _ in range(steps + 1):
            start = time.perf_counter()
            current, metrics = train_step(current, batch)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
        print(f"{recipe}: {statistics.median(seconds[1:]):.3f} s a step")


if __name__ == "__main__":
    if sys.argv[1] == "--cost":
        for name in ("lora", "full"):
            print_cost(name, int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), Path((sys.argv[2:] or ["docs/transformers"])[0]), CURVES, DRAWINGS)
        for name in CURVES["minilm"][0]:
            if (Path(sys.argv[1]) / name / checkpoint.FOLDER).is_dir():
                print_sizes(Path(sys.argv[1]) / name)
