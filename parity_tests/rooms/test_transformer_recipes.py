"""The transformer recipes: their data is what it says, and they train."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxarch import catalog, data
from jaxarch.data.sets import dates, docstrings, help_pages
from jaxarch.train import fit, tasks
from jaxarch.train.tasks import multi_task, translation

QUICK = {"train.steps": "2", "train.eval_every": "2", "train.batch_size": "8", "train.warmup_steps": "1"}


@pytest.fixture
def few_pages(monkeypatch):
    rows = [
        (f"The {part} call. It is good!" + " So." * n, i, n % 2 == 1)
        for n in range(5)
        for i, part in enumerate(docstrings.PARTS)
    ]
    monkeypatch.setattr(docstrings, "pages", lambda minimum: (rows[:18], rows[18:]))


def test_help_pages(few_pages):
    source = data.load("help_pages", out=None, arguments={"max_length": 6, "vocab_size": 30}, options={})
    batch = source.train
    np.testing.assert_array_equal(batch["target_part"], np.tile(np.arange(6), 3))
    np.testing.assert_array_equal(batch["target_function"], np.repeat([0, 1, 0], 6))
    assert batch["target_ease"].mean() == pytest.approx(0, abs=1e-6)
    assert batch["target_ease"].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(batch["attention_mask"].sum(1), np.full(18, 6))
    assert [source.extra["words"][i] for i in batch["input_ids"][0]] == [
        "the",
        "concurrency",
        "call",
        ".",
        "it",
        "is",
    ]
    mean, deviation = source.extra["ease"]
    assert batch["target_ease"][0] * deviation + mean == pytest.approx(
        help_pages.reading_ease("The concurrency call. It is good!"), rel=1e-4
    )
    # Six words of nine groups of vowels in two sentences.
    wanted = 206.835 - 1.015 * 6 / 2 - 84.6 * 9 / 6
    assert help_pages.reading_ease("The concurrency call. It is good!") == pytest.approx(wanted)
    assert help_pages.reading_ease("123") == 0
    found = help_pages.baselines(source)
    assert found["most frequent part"] == pytest.approx(1 / 6)
    assert found["linear part"] == 1


class Heads(nnx.Module):
    """A model whose outputs are its inputs."""

    tasks, loss_types = ("a", "b", "c"), ("cross_entropy", "binary_cross_entropy", "mse")

    def __call__(self, a, b, c):
        return {"a": a, "b": b, "c": c}


def test_heads_are_counted_over_real_rows():
    batch = {
        "a": jnp.asarray([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [0.0, 3.0]]),
        "b": jnp.asarray([[1.0], [-1.0], [2.0], [2.0]]),
        "c": jnp.asarray([[1.0], [2.0], [3.0], [9.0]]),
        "target_a": jnp.asarray([1, 1, 1, 1]),
        "target_b": jnp.asarray([1.0, 0.0, 0.0, 1.0]),
        "target_c": jnp.asarray([1.0, 2.0, 6.0, 9.0]),
        "valid": jnp.asarray([True, True, True, False]),
    }
    found = multi_task.summary({k: np.asarray(v) for k, v in multi_task.tally(Heads(), batch).items()})
    wanted = {"accuracy_a": 2 / 3, "accuracy_b": 2 / 3, "r2_c": 1 - 9 / 14}
    assert found == pytest.approx(wanted | {"mean": np.mean(list(wanted.values()))})


def test_the_heads_train(few_pages, tmp_path):
    settings = QUICK | {"model.hidden_size": "8", "model.max_length": "8"}
    run = fit("custom_multi_task_seo_model", settings=settings, out=tmp_path / "run", progress=False)
    assert {"accuracy_part", "accuracy_function", "r2_ease", "mean"} == run.metrics.keys()
    row = run.history[-1]
    assert row["loss"] == pytest.approx(sum(row[f"loss_{h}"] for h in help_pages.HEADS), rel=1e-5)


def test_dates_are_written_greedily(tmp_path):
    settings = QUICK | {"train.options.count": "40", "model.d_model": "16", "model.n_layers": "1"}
    run = fit("transformer", settings=settings, out=tmp_path / "run", progress=False)
    assert {"exact", "characters", "loss"} == run.metrics.keys()
    assert catalog.arguments("transformer", "dates")["vocab_size"] == len(dates.SYMBOLS)


def test_translations_count_only_when_whole(monkeypatch):
    def echo(model, src, length, *, bos_token_id, eos_token_id):
        assert (length, bos_token_id, eos_token_id) == (3, 7, 2)
        return src

    def logits(src, tgt):
        return jnp.where(src[..., None] == jnp.arange(5), 9.0, 0.0)

    monkeypatch.setattr(translation, "translate", echo)
    task = tasks.task("translation", bos=7)
    src = jnp.asarray([[3, 4, 2], [3, 3, 2], [4, 4, 2]])
    label, valid = jnp.asarray([[3, 4, 2], [3, 4, 2], [3, 4, 2]]), jnp.asarray([True, True, False])
    found = task.summary(task.tally(logits, {"src": src, "tgt": src, "label": label, "valid": valid}))
    # Five characters of six, at the loss of nine and of none.
    least = float(np.log1p(4 * np.exp(-9.0)))
    assert found == pytest.approx({"exact": 0.5, "characters": 5 / 6, "loss": least + 9 / 6})
