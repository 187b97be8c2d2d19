"""The sequence recipes: their data is what it says, they train, and what they show is self-contained."""

import datetime
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxarch import catalog, data, html, state
from jaxarch.data.sets import co2, dates, docstrings, pydoc_streams, spiral
from jaxarch.errors import DataError, UsageError
from jaxarch.train import fit, tasks
from jaxarch.train.tasks import forecast

QUICK = {"train.steps": "2", "train.eval_every": "2", "train.batch_size": "8"}
ONE = "data=1"


pytestmark = pytest.mark.usefixtures("first_devices")


def load(name, arguments=None, **options):
    return data.load(name, out=None, arguments=arguments or {}, options=options)


@pytest.fixture
def season(monkeypatch):
    """A short series that rises by 0.1 a month and repeats itself every 12 months otherwise."""
    months = np.arange(160)
    monkeypatch.setattr(co2, "monthly", lambda: 300 + 0.1 * months + np.sin(months * np.pi / 6))


@pytest.fixture
def few_texts(monkeypatch):
    """Three docstrings of each part to train on, and two to test on."""
    rows = [
        (f"The {part} number {n}. Call {part}_{n}() with care!", i)
        for n in range(5)
        for i, part in enumerate(docstrings.PARTS)
    ]
    monkeypatch.setattr(docstrings, "texts", lambda minimum: (rows[:18], rows[18:]))


def test_forecasts_that_need_no_learning(season):
    source = load("co2", {"pred_steps": 14}, window=24, tested=40)
    assert source.train["x"].shape == (83, 24, 1)
    assert source.test["target"].shape == (27, 14)
    # The tested months are the last 40, none of which is in a training window.
    series, cut = source.extra["series"], source.extra["cut"]
    first = source.test["target"][0] * source.extra["scale"]
    np.testing.assert_allclose(first, series[cut : cut + 14] - series[cut - 1], rtol=1e-4, atol=1e-4)
    last = source.train["target"][-1, -1] * source.extra["scale"]
    np.testing.assert_allclose(last, series[cut - 1] - series[cut - 15], rtol=1e-4, atol=1e-4)
    found = forecast.baselines(jnp.asarray(source.test["x"][..., 0], float), 14, 12)
    errors = {
        k: np.abs(np.asarray(v) - source.test["target"]).mean() * source.extra["scale"]
        for k, v in found.items()
    }
    assert errors["mae_drift"] < 1e-5
    np.testing.assert_allclose(errors["mae_seasonal"], (12 * 1.2 + 2 * 2.4) / 14, rtol=1e-4)
    assert errors["mae_last"] > errors["mae_drift"]
    with pytest.raises(DataError, match=r"lower train\.options\.window"):
        load("co2", {"pred_steps": 12}, window=200)


def test_the_forecaster_trains(season, tmp_path):
    settings = QUICK | {"train.options.tested": "40"}
    run = fit("gru_forecaster", settings=settings, mesh=ONE, out=tmp_path / "run", progress=False)
    assert {"mae", "mae_last", "mae_seasonal", "mae_drift", "loss"} == run.metrics.keys()


def test_docstrings(few_texts):
    words = load("docstrings", {"vocab_size": 8}, length=6)
    assert words.train["ids"].shape == (18, 6)
    assert words.test["ids"].max() < 8
    assert words.extra["words"][:2] == ["", "?"]
    assert len(words.extra["words"]) == 8
    np.testing.assert_array_equal(words.train["lengths"], 6)
    sentences = load("docstrings", {"vocab_size": 40}, form="sentences", length=5, sentences=3)
    assert sentences.train["ids"].shape == (18, 3, 5)
    assert not sentences.train["ids"][:, 2].any()
    back = [sentences.extra["words"][i] for i in sentences.train["ids"][0, 0]]
    assert back == ["the", "concurrency", "number", "0", "."]
    characters = load("docstrings", form="characters", length=9)
    np.testing.assert_array_equal(characters.train["x"].sum(-1), 1)
    place = docstrings.SYMBOLS.index("h")
    assert characters.train["x"][0, 1, place] == 1
    found = docstrings.baselines(words)
    assert found["majority"] == pytest.approx(1 / 6)
    assert found["bag of words"] > 0.9
    with pytest.raises(UsageError, match="characters"):
        load("docstrings", {"vocab_size": 8}, form="lines")


def test_no_text_is_on_both_sides(monkeypatch):
    monkeypatch.setattr(docstrings, "PARTS", {"data": "json email", "tests": "unittest"})
    train, test = docstrings.texts(40)
    assert not {t for t, _ in train} & {t for t, _ in test}
    assert {label for _, label in train} == {label for _, label in test} == {0, 1}
    monkeypatch.setattr(docstrings, "PARTS", {"none": "such"})
    with pytest.raises(DataError, match="install Python's full package"):
        docstrings.texts()


def test_the_classifier_trains(few_texts, tmp_path):
    settings = QUICK | {"model.hidden_dims": "[4]", "train.options.length": "16"}
    run = fit("deep_residual_cnn", settings=settings, mesh=ONE, out=tmp_path / "run", progress=False)
    assert 0 <= run.metrics["accuracy"] <= 1


def test_videos_and_paths(tmp_path):
    videos = load("moving_digits", frames=4, shown=1, count=20)
    x = videos.train["x"]
    assert x.shape == (20, 4, 16, 16, 1)
    # One digit is moved, never cut: every frame has the same ink.
    np.testing.assert_allclose(x.sum((2, 3, 4)), x[:, :1].sum((2, 3, 4)) * np.ones(4), rtol=1e-5)
    assert (x[:, 0] != x[:, 1]).any((1, 2, 3)).all()
    smaller = {"train.options.frames": "3", "train.options.count": "40", "model.hidden_channels": "2"}
    run = fit("conv_lstm", settings=QUICK | smaller, mesh=ONE, out=tmp_path / "video", progress=False)
    assert run.metrics["mse_copy"] > 0
    pieces = load("spiral", count=50, noise=0.0)
    times, target = pieces.train["times"], pieces.train["target"]
    assert (np.diff(times) > 0).all()
    assert len(np.unique(times[:, 1])) == 50
    # A second solution in steps half as long is the same, and all spirals go inwards.
    halves = np.sort(np.concatenate([times, (times[:, 1:] + times[:, :-1]) / 2], 1), 1)
    np.testing.assert_allclose(spiral.solve(target[:, 0], halves)[:, ::2], target, atol=1e-4)
    size = (target**4).sum(-1)
    assert (np.diff(size) < 1e-6).all()
    run = fit("neural_ode", settings=QUICK, mesh=ONE, out=tmp_path / "path", progress=False)
    assert run.metrics["mse_still"] > 0


def test_dates_are_read_as_written():
    source = load("dates", count=200)
    ids, lengths = source.train["src"], source.train["lengths"]
    right = set()
    for row, length, target, label in zip(
        ids, lengths, source.train["tgt"], source.train["label"], strict=True
    ):
        said = "".join(dates.SYMBOLS[i] for i in row)
        assert said[length:].strip(dates.PAD) == ""
        meant = "".join(dates.SYMBOLS[i] for i in label)
        assert meant[-1] == dates.END
        np.testing.assert_array_equal(target[1:], label[:-1])
        day = datetime.date.fromisoformat(meant[:-1])
        assert said[:length] in [dates.spoken(day, way) for way in range(8)]
        right.add(day)
    assert len(right) == 200


def test_coins_follow_the_schedule():
    task = tasks.task("teacher_forcing", start=1.0, end=0.5, over=2)
    source = load("dates", count=20)
    batch = {k: jnp.asarray(v) for k, v in source.batch(0, 0, 4).items()}
    heard = []

    def listen(src, tgt, lengths, coins):
        heard.append(coins)
        return jnp.zeros((*tgt.shape, len(dates.SYMBOLS)))

    model = task.wrap(listen, batch, 44, nnx.Rngs(0))
    drawn = task.draw(jax.random.key(0), batch)
    ratios = [float(task.updates["model"].loss(model, drawn)[1]["ratio"]) for _ in range(4)]
    assert ratios == [1.0, 0.75, 0.5, 0.5]
    assert heard[0].all()
    np.testing.assert_array_equal(heard[2], np.asarray(drawn["uniform"]) < 0.5)
    with pytest.raises(UsageError, match="ratios must be in"):
        tasks.task("teacher_forcing", start=1.5)


def test_the_translator_trains(tmp_path):
    smaller = {"train.options.count": "40", "model.hidden_size": "4", "model.embed_dim": "3"}
    run = fit("seq2seq_rnn", settings=QUICK | smaller, mesh=ONE, out=tmp_path / "run", progress=False)
    assert {"exact", "characters"} == run.metrics.keys()
    assert run.history[0]["ratio"] == 1.0 > run.history[1]["ratio"]


def test_streams_go_on():
    ids = np.arange(24).reshape(12, 2)
    source = pydoc_streams.Streams(train=ids, test=ids, classes=24)
    for epoch in range(3):
        batches = [source.batch(0, epoch * 4 + i, 3) for i in range(4)]
        read = np.concatenate([b["ids"] for b in batches], 1)
        assert sorted(read.ravel()) == list(range(24))
        assert batches[0]["fresh"].all()
        for before, after in itertools.pairwise(batches):
            goes_on = after["ids"][:, 0] == before["ids"][:, -1] + 1
            np.testing.assert_array_equal(after["fresh"], ~goes_on)


def test_truncated_backpropagation():
    """Two windows with the state carried: forward as one long window, in reverse each its own."""
    made = catalog.create_model("bi_lstm", "tiny")
    task = tasks.task("masked_language_model", rate=0.5, carry=True)
    ids = np.random.default_rng(0).integers(0, 19, (2, 8))
    first = {"ids": ids[:, :4]}
    model = task.wrap(made, first, 20, nnx.Rngs(0))
    model.train()
    graph, params, rest = state.split(model)
    h_of = nnx.jit(lambda m, ids: m.lstm(m.embed(ids))[0])

    def step(params, rest, ids, fresh):
        model = state.merge(graph, params, rest)
        logits = model(ids, fresh)
        return (logits**2).sum(), (logits, state.rest_of(model))

    jitted = jax.jit(jax.value_and_grad(step, has_aux=True))
    stay = jnp.array([False, False])
    (_, (_, rest)), _ = jitted(params, rest, jnp.asarray(ids[:, :4]), stay)
    whole = h_of(made, jnp.asarray(ids))
    np.testing.assert_allclose(rest["h"][0], whole[:, 3, :6], rtol=1e-12)
    (_, (logits, _)), gradient = jitted(params, rest, jnp.asarray(ids[:, 4:]), jnp.array([False, True]))
    own = h_of(made, jnp.asarray(ids[:, 4:]))
    expected = np.asarray(own).copy()
    expected[0, :, :6] = whole[0, 4:, :6]  # row 1 begins anew
    np.testing.assert_allclose(logits, made.fc(jnp.asarray(expected)), rtol=1e-12)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_the_language_model_trains(tmp_path):
    smaller = {"model.vocab_size": "260", "model.hidden_size": "4", "model.embed_size": "3"}
    smaller |= {"train.options.length": "256", "train.batch_size": "16"}
    run = fit(
        "bi_lstm",
        recipe="truncated",
        settings=QUICK | smaller,
        mesh="data=2",
        out=tmp_path / "run",
        progress=False,
    )
    assert 1 < run.metrics["perplexity"] < 400


def test_attention_over_text():
    words = [["a", "<b>", "c"], ["d"]]
    weights = (np.array([[0.1, 0.6, 0.3, 0], [1, 0, 0, 0], [0, 0, 0, 0]]), np.array([0.75, 0.25, 0]))
    page = html.attention(words, weights, title="HAN & co")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "HAN &amp; co" in page
    shades = [float(s) for s in re.findall(r"rgb\([\d ]+/ ([\d.]+)\)", page)]
    np.testing.assert_allclose(shades, [0.167, 1, 0.5, 1])
    assert [float(s) for s in re.findall(r"([\d.]+) %<span class=\"bar\"", page)] == [75, 25]
    assert not re.search(r"(src|href)=|url\(|@import", page)
    for change, match in (
        ((weights[0], weights[1][:2]), "not those of one document"),
        ((weights[0][:1], weights[1][:1]), "more than the weights"),
        ((weights[0] - 1, weights[1]), r"in \[0, 1\]"),
    ):
        with pytest.raises(DataError, match=match):
            html.attention(words, change)
